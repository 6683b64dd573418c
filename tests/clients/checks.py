"""What is run, and what has to have happened then: one entry a client and a way.

The ways: `interception` (by the environment of `outgate exec`, real https URLs), `forward` (http:// URLs through the proxy),
`local` (a base URL at the local endpoint, no proxy variables, no CA), `none` (no outgate: does the origin refuse?).
"""

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path

from origin import EXAMPLE, GITHUB, GRPC, OPENAI, REALTIME, STRIPE, Origins
from outgate import Outgate

LIST = "GET /v1/things?limit=2"
POST = "POST /v1/things"
HEALTH = "POST /grpc.health.v1.Health/"


@dataclasses.dataclass
class Check:
    """One client, run once, by one way."""

    client: str
    way: str
    title: str
    command: list[str]
    host: str
    # What the origin has to see, in any order: "METHOD /path?query".
    sees: list[str]
    # What the app has to print.
    says: str
    # The app's exit code; None: any but 0.
    code: int | None = 0
    # The origin's judgement on each request: True, the exact credential.
    authorized: bool = True
    # HTTP version between app and outgate, and of the CONNECT before it, where the check is about it.
    version: str | None = None
    connect_version: str | None = None


class Tools:
    """Where everything is: builds command lines."""

    def __init__(self, outgate: Outgate, origins: Origins, apps: Path, python: str, node: str | None, key: str):
        self.outgate = outgate
        self.origins = origins
        self.node = node
        self._apps = apps
        self._python = python
        self._key = key
        self.base = f"http://127.0.0.1:{outgate.proxy}"

    def python(self, app: str, *arguments: str, interpreter: str | None = None) -> list[str]:
        return [interpreter or self._python, str(self._apps / app), *arguments]

    def mjs(self, app: str, *arguments: str) -> list[str]:
        return [self.node, str(self._apps / app), *arguments]

    def curl(self, url: str, *options: str, header: str = "X-Api-Key: ") -> list[str]:
        # --disable: no ~/.curlrc.
        return ["curl", "--disable", "--silent", "--show-error", "--fail-with-body", "--max-time", "20",
                "--header", f"{header}{self._key}", *options, url]


def all_checks(tools: Tools, isolated: bool) -> list[Check]:
    checks = [
        *curl_checks(tools),
        *http_library_checks(tools),
        *tunnel_checks(tools),
        *stripe_checks(tools),
        *openai_checks(tools),
        *grpc_checks(tools),
        *websocket_checks(tools),
    ]
    if tools.node:
        checks += node_checks(tools)
    if isolated:
        checks += not_by_environment_alone(tools)
    return checks


def curl_checks(tools: Tools) -> list[Check]:
    outgate, things = tools.outgate, "/v1/things?limit=2"
    proxied, json_body = f"https://{EXAMPLE}{things}", ("--header", "Content-Type: application/json", "--data", '{"name":"x"}')
    direct = ("--connect-to", f"::127.0.0.1:{tools.origins.ports[EXAMPLE]}", "--cacert", str(tools.origins.ca_file))
    said = '"things": [0, 1]'

    def check(way: str, title: str, command: list[str], **more) -> Check:
        return Check("curl", way, title, command, EXAMPLE, **({"sees": [LIST], "says": said} | more))

    return [
        check("none", "the origin refuses the app's key", tools.curl(proxied, *direct), says="dummy key came through",
              code=22, authorized=False),
        check("forward", "GET http://", outgate.exec(*tools.curl(f"http://{EXAMPLE}{things}")), version="1.1"),
        check("interception", "HTTP/1.1", outgate.exec(*tools.curl(proxied, "--http1.1")), version="1.1", connect_version="1.1"),
        check("interception", "HTTP/2", outgate.exec(*tools.curl(proxied, "--http2")), version="2", connect_version="1.1"),
        check("interception", "HTTP/2, POST", outgate.exec(*tools.curl(f"https://{EXAMPLE}/v1/things", "--http2", *json_body)),
              sees=[POST], says='"name": "x"', version="2"),
        check("interception", "CONNECT HTTP/1.0", connect_version="1.0",
              command=outgate.exec(*tools.curl(proxied, "--proxy1.0", f"127.0.0.1:{outgate.proxy}"))),
        check("interception", "outgate env", outgate.env(*tools.curl(proxied))),
        check("local", "path prefix", tools.curl(f"{tools.base}/example{things}"), version="1.1"),
        check("local", "path prefix, POST", tools.curl(f"{tools.base}/example/v1/things", *json_body),
              sees=[POST], says='"name": "x"'),
        check("local", "path prefix, HTTP/2", tools.curl(f"{tools.base}/example{things}", "--http2-prior-knowledge"),
              version="2"),
        check("local", "NAME.localhost", tools.curl(f"http://example.localhost:{outgate.proxy}{things}")),
        check("local", "the provider's name in Host", tools.curl(tools.base + things, "--header", f"Host: {EXAMPLE}")),
        check("local", "named through the proxy", tools.curl(f"{tools.base}/example{things}", "--proxy", tools.base)),
        check("local", "unix socket", tools.curl(f"http://localhost/example{things}", "--unix-socket", str(outgate.socket))),
    ]


def http_library_checks(tools: Tools) -> list[Check]:
    said, both = "listed [0, 1] created {'name': 'x'}", [LIST, POST]
    checks = []
    for name in ("urllib", "requests", "httpx", "httpx-http2", "aiohttp"):
        version = "2" if name == "httpx-http2" else "1.1"
        title = "trust_env=True" if name == "aiohttp" else "environment alone"
        command = tools.outgate.exec(*tools.python("http_app.py", name, f"https://{EXAMPLE}"))
        checks.append(Check(name, "interception", title, command, EXAMPLE, both, said, version=version))
        if name != "httpx-http2":
            command = tools.python("http_app.py", name, f"{tools.base}/example")
            checks.append(Check(name, "local", "base URL", command, EXAMPLE, both, said, version="1.1"))
    forwarded = tools.outgate.exec(*tools.python("http_app.py", "requests", f"http://{EXAMPLE}"))
    return [*checks, Check("requests", "forward", "http:// URLs", forwarded, EXAMPLE, both, said)]


def tunnel_checks(tools: Tools) -> list[Check]:
    raw = tools.outgate.exec(*tools.python("connect10_app.py"))
    checks = [Check("raw socket", "interception", "CONNECT HTTP/1.0 without Host", raw, EXAMPLE, ["GET /v1/things"],
                    '"things": [0]', connect_version="1.0")]
    for interpreter, version in interpreters():
        expected = "1.0" if version < (3, 12) else "1.1"
        name, title = "python{}.{}".format(*version), f"http.client set_tunnel, CONNECT HTTP/{expected}"
        command = tools.outgate.exec(*tools.python("http_client_app.py", interpreter=interpreter))
        checks.append(Check(name, "interception", title, command, EXAMPLE, [LIST, LIST], "listed [0, 1]",
                            connect_version=expected))
    return checks


def interpreters() -> list[tuple[str, tuple[int, int]]]:
    """Every Python from 3.8 on that this machine has, by version; the first found of each."""
    found: dict[tuple[int, int], str] = {}
    candidates = sorted(Path.home().glob(".pyenv/versions/3.*/bin/python3"))
    candidates += [Path(path) for minor in range(8, 20) if (path := shutil.which(f"python3.{minor}"))]
    for candidate in [*candidates, Path(shutil.which("python3") or "python3")]:
        asked = subprocess.run([str(candidate), "-c", "import ssl, sys; print(*sys.version_info[:2])"],
                               capture_output=True, text=True, env=os.environ)
        if asked.returncode == 0:
            version = tuple(map(int, asked.stdout.split()))
            if version >= (3, 8):
                found.setdefault(version, str(candidate))
    return [(found[version], version) for version in sorted(found)]


def stripe_checks(tools: Tools) -> list[Check]:
    both, said = ["POST /v1/customers", "GET /v1/customers?limit=1"], "created b@example.com\nlisted ['cus_1']"
    listed = {"sees": ["GET /v1/customers?limit=1"], "says": "listed cus_1"}

    def check(way: str, title: str, command: list[str], **more) -> Check:
        return Check("stripe-python", way, title, command, STRIPE, **({"sees": both, "says": said} | more))

    port = f"http://127.0.0.1:{tools.outgate.stripe_port}"
    return [
        check("interception", "one line: ca_bundle_path", tools.outgate.exec(*tools.python("stripe_app.py", "-", "ca"))),
        check("interception", "one line: ca_bundle_path; async",
              tools.outgate.exec(*tools.python("stripe_app.py", "-", "ca", "async")), **listed),
        check("local", "api_base", tools.python("stripe_app.py", f"{tools.base}/stripe")),
        check("local", "api_base; async", tools.python("stripe_app.py", f"{tools.base}/stripe", "async"), **listed),
        check("local", "api_base, a port of its own", tools.python("stripe_app.py", port)),
    ]


def openai_checks(tools: Tools) -> list[Check]:
    sees = ["POST /v1/chat/completions"] * 3 + ["POST /v1/embeddings", "GET /v1/models"]
    said = "plain hello\nembedding [0.5, 0.25]\nstreamed ['hel', 'lo']\nasync hello"
    intercepted = tools.outgate.exec(*tools.python("openai_app.py", "-"))
    local = tools.python("openai_app.py", f"{tools.base}/openai/v1")
    return [
        Check("openai-python", "interception", "environment alone; streaming, async", intercepted, OPENAI, sees, said),
        Check("openai-python", "local", "base_url; streaming, async", local, OPENAI, sees, said),
    ]


def grpc_checks(tools: Tools) -> list[Check]:
    sees = [HEALTH + "Check"] * 3 + [HEALTH + "Watch"]
    said = "unary SERVING origin\nerror NOT_FOUND no such service\nstreamed ['NOT_SERVING', 'SERVING']"
    address = f"127.0.0.1:{tools.outgate.proxy}"

    def check(way: str, title: str, command: list[str]) -> Check:
        return Check("grpcio", way, title, command, GRPC, sees, said, version="2")

    return [
        check("interception", "environment alone", tools.outgate.exec(*tools.python("grpc_app.py", "tls", GRPC))),
        check("local", "h2c, NAME.localhost as authority", tools.python("grpc_app.py", "plain", address, "grpc.localhost")),
        check("local", "h2c, the provider's name as authority", tools.python("grpc_app.py", "plain", address, GRPC)),
    ]


def websocket_checks(tools: Tools) -> list[Check]:
    intercepted = tools.outgate.exec(*tools.python("websocket_app.py", f"wss://{REALTIME}/echo"))
    local = tools.python("websocket_app.py", f"ws://127.0.0.1:{tools.outgate.proxy}/realtime/echo")
    said = "echoed one 100000"
    return [
        Check("websockets", "interception", "environment alone", intercepted, REALTIME, ["GET /echo"], said),
        Check("websockets", "local", "ws:// URL", local, REALTIME, ["GET /echo"], said),
    ]


def node_checks(tools: Tools) -> list[Check]:
    sees = ["GET /repos/o/r", "GET /repos/o/r/issues", "GET /repos/o/r/issues?page=2", "GET /repos/o/r/issues?page=3", "POST /graphql"]
    said = "repository o/r\nissues 1 2 3\nviewer octocat"
    line, title = ([], "environment alone") if reads_proxy_variables(tools.node) else (["dispatcher"], "two lines: undici's dispatcher")
    octokit = tools.outgate.exec(*tools.mjs("octokit_app.mjs", "-", *line))
    fetch = tools.outgate.exec(*tools.mjs("fetch_app.mjs", f"https://{EXAMPLE}", *line))
    fetched = "listed [0,1]\ncreated 201"
    return [
        Check("@octokit/rest", "interception", title, octokit, GITHUB, sees, said),
        Check("@octokit/rest", "local", "baseUrl; pages, graphql", tools.mjs("octokit_app.mjs", f"{tools.base}/github"), GITHUB,
              sees, said),
        Check("node fetch", "interception", title, fetch, EXAMPLE, [LIST, POST], fetched),
        Check("node fetch", "local", "base URL", tools.mjs("fetch_app.mjs", f"{tools.base}/example"), EXAMPLE, [LIST, POST], fetched),
    ]


def reads_proxy_variables(node: str) -> bool:
    """NODE_USE_ENV_PROXY: Node 22.21 and later of 22, 24.5 and later."""
    printed = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = map(int, printed.strip().lstrip("v").split(".")[:2])
    return (major, minor) >= (24, 5) or (major == 22 and minor >= 21)


def not_by_environment_alone(tools: Tools) -> list[Check]:
    """Who needs a line, tried without it: they must fail without having sent anything.

    Only in a network of our own, since some would go past the proxy to the real host. One that begins to work is good news: its row in
    README.md is then out of date.
    """
    checks = [
        Check("stripe-python", "interception", "not by environment alone: its own roots",
              tools.outgate.exec(*tools.python("stripe_app.py", "-")), STRIPE, [], "CERTIFICATE_VERIFY_FAILED", code=None),
        Check("aiohttp", "interception", "not by environment alone: no proxy",
              tools.outgate.exec(*tools.python("http_app.py", "aiohttp-plain", f"https://{EXAMPLE}")), EXAMPLE, [],
              "Cannot connect to host", code=None),
    ]
    if tools.node and not reads_proxy_variables(tools.node):
        checks.append(Check("node fetch", "interception", "not by environment alone: no proxy",
                            tools.outgate.exec(*tools.mjs("fetch_app.mjs", f"https://{EXAMPLE}")), EXAMPLE, [], "fetch failed",
                            code=None))
    return checks
