// @sendgrid/mail: a mail.
import sendgrid from "@sendgrid/mail";
import { KEY, LINES, LOCAL } from "./how.mjs";

eval(LINES);
const [sent] = await sendgrid.send({ from: "me@example.com", to: "a@example.com", subject: "hi", text: "x" });
console.log("sent", sent.statusCode);
