// resend: a mail, a list of domains.
import { Resend } from "resend";
import { KEY, LINES, LOCAL } from "./how.mjs";

const client = eval(LINES);
console.log("sent", (await client.emails.send({ from: "me@example.com", to: "a@example.com", subject: "hi", text: "x" })).data.id);
console.log("domains", (await client.domains.list()).data.data.map((one) => one.name).join(" "));
