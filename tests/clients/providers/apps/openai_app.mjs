// openai: an answer, and one as a stream, whose second part comes only after another call.
import OpenAI from "openai";
import { KEY, LINES, LOCAL } from "./how.mjs";

const client = eval(LINES);
const question = { model: "gpt-test", messages: [{ role: "user", content: "hi" }] };
console.log("plain", (await client.chat.completions.create(question)).choices[0].message.content);
const words = [];
for await (const part of await client.chat.completions.create({ ...question, stream: true })) {
  if (words.length === 0) await client.models.list();
  words.push(part.choices[0].delta.content);
}
console.log("streamed", words.join(" "));
