// Before an app: writes down what it receives, heads and bodies, of `http` and of `fetch`. The file is `TAP`.
import { appendFileSync } from "node:fs";
import { IncomingMessage } from "node:http";
import { Readable } from "node:stream";

const heard = (data) => appendFileSync(process.env.TAP, data);

const begun = new WeakSet();
IncomingMessage.prototype.push = function (chunk, encoding) {
  if (!begun.has(this)) {
    begun.add(this);
    heard(`${this.rawHeaders.join("\n")}\n`);
  }
  if (chunk !== null) heard(chunk);
  return Readable.prototype.push.call(this, chunk, encoding);
};

const plain = globalThis.fetch;
globalThis.fetch = async (...request) => {
  const response = await plain(...request);
  heard(`${[...response.headers].join("\n")}\n`);
  if (!response.body) return response;
  const listening = new TransformStream({ transform(chunk, next) { heard(chunk); next.enqueue(chunk); } });
  const { status, statusText, headers, url } = response;
  const body = response.body.pipeThrough(listening);
  return Object.defineProperty(new Response(body, { status, statusText, headers }), "url", { value: url });
};
