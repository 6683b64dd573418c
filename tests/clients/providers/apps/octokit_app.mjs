// @octokit/rest: a repository, pages of issues, a new issue.
import { Octokit } from "@octokit/rest";
import { KEY, LINES, LOCAL } from "./how.mjs";

const client = eval(LINES);
console.log("repository", (await client.rest.repos.get({ owner: "o", repo: "r" })).data.full_name);
const issues = await client.paginate(client.rest.issues.listForRepo, { owner: "o", repo: "r" });
console.log("issues", issues.map((issue) => issue.number).join(" "));
console.log("created", (await client.rest.issues.create({ owner: "o", repo: "r", title: "new" })).data.number);
