// stripe: a payment, pages of customers.
import { HttpsProxyAgent } from "https-proxy-agent";
import Stripe from "stripe";
import { KEY, LINES, PORT } from "./how.mjs";

const client = eval(LINES);
console.log("created", (await client.paymentIntents.create({ amount: 100, currency: "eur" })).id);
const listed = [];
for await (const one of client.customers.list({ limit: 1 })) listed.push(one.id);
console.log("listed", listed.join(" "));
