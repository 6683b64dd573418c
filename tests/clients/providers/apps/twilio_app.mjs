// twilio: a message, pages of messages.
import twilio from "twilio";
import { KEY, LINES, LOCAL } from "./how.mjs";

const client = eval(LINES);
console.log("sent", (await client.messages.create({ to: "+15005550006", from: "+15005550001", body: "hi" })).sid);
console.log("listed", (await client.messages.list({ pageSize: 1 })).map((one) => one.sid).join(" "));
