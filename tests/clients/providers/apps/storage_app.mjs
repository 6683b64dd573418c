// @google-cloud/storage: an object written, listed and read.
import { Storage } from "@google-cloud/storage";
import { OAuth2Client } from "google-auth-library";
import { KEY, LINES, LOCAL } from "./how.mjs";

// Any token will do: outgate puts its own in its place.
const authClient = new OAuth2Client({ credentials: { access_token: KEY, expiry_date: Date.now() + 3_600_000 } });
const client = eval(LINES);
const bucket = client.bucket("bucket");
await bucket.file("one").save("hello", { resumable: false });
const [files] = await bucket.getFiles({ maxResults: 1 });
console.log("listed", files.map((file) => file.name).join(" "));
const [content] = await bucket.file("one").download();
console.log("read", content.toString());
