// @anthropic-ai/sdk: an answer, and one as a stream, whose second part comes only after another call, which has two pages.
import Anthropic from "@anthropic-ai/sdk";
import { KEY, LINES, LOCAL } from "./how.mjs";

const client = eval(LINES);
const question = { model: "claude-test", max_tokens: 9, messages: [{ role: "user", content: "hi" }] };
console.log("plain", (await client.messages.create(question)).content[0].text);
const words = [], models = [];
for await (const event of await client.messages.create({ ...question, stream: true })) {
  if (event.type === "message_start") for await (const model of client.models.list({ limit: 1 })) models.push(model.id);
  if (event.type === "content_block_delta") words.push(event.delta.text);
}
console.log("models", models.join(" "), "streamed", words.join(" "));
