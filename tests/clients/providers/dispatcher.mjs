// What a program needs where Node does not read the proxy variables by itself (before 22.21 and 24.5): undici from npm, for `fetch`.
import { EnvHttpProxyAgent, setGlobalDispatcher } from "undici";
setGlobalDispatcher(new EnvHttpProxyAgent());
