// Node's own `fetch`. Arguments: the base URL, and `dispatcher` where Node does not read the proxy variables by itself.
const [base, line] = process.argv.slice(2);
if (line === "dispatcher") {
  const { EnvHttpProxyAgent, setGlobalDispatcher } = await import("undici");
  setGlobalDispatcher(new EnvHttpProxyAgent());
}
const headers = { "X-Api-Key": process.env.APP_KEY };
const listed = await fetch(`${base}/v1/things?limit=2`, { headers });
console.log("listed", JSON.stringify((await listed.json()).things));
const body = JSON.stringify({ name: "x" });
const created = await fetch(`${base}/v1/things`, { method: "POST", headers, body });
console.log("created", created.status);
