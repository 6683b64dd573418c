// @slack/web-api: a message, pages of channels.
import { WebClient } from "@slack/web-api";
import { KEY, LINES, LOCAL } from "./how.mjs";

const client = eval(LINES);
console.log("posted", (await client.chat.postMessage({ channel: "C1", text: "hi" })).ts);
const names = [];
for await (const page of client.paginate("conversations.list", { limit: 1 })) names.push(...page.channels.map((one) => one.name));
console.log("channels", names.join(" "));
