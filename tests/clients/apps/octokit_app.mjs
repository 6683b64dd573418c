// @octokit/rest: a call, pagination by `Link`, and GraphQL. Arguments: `baseUrl` (or `-`), and `dispatcher` where Node
// does not read the proxy variables by itself.
import { Octokit } from "@octokit/rest";

const [base, line] = process.argv.slice(2);
if (line === "dispatcher") {
  const { EnvHttpProxyAgent, setGlobalDispatcher } = await import("undici");
  setGlobalDispatcher(new EnvHttpProxyAgent());
}
const octokit = new Octokit({ auth: process.env.APP_KEY, ...(base === "-" ? {} : { baseUrl: base }) });

const repository = await octokit.rest.repos.get({ owner: "o", repo: "r" });
console.log("repository", repository.data.full_name);
const issues = await octokit.paginate(octokit.rest.issues.listForRepo, { owner: "o", repo: "r" });
console.log("issues", issues.map((issue) => issue.number).join(" "));
const { viewer } = await octokit.graphql("query { viewer { login } }");
console.log("viewer", viewer.login);
