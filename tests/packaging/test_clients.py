"""Clients beside a sidecar, with nothing but the variables that the injector has put into their container: intercepted, and with the credential.

The pod is what `outgate inject` makes of one; its sidecar runs with the rendered arguments, and the variables are those of its app. Only the places of
the volumes are this machine's. Which client wants what is the table below, and docs/clients.md says the same.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from dataclasses import dataclass
from pathlib import Path

from engine import ROOT, missing
from pod import Pod, free_port
from test_pod import HOST, KEY, Origin, policy
from webhook import command_line, injector_objects, template_of

URL = f"https://{HOST}/v1/balance"
FETCH = "const got = await fetch(process.env.URL); console.log(got.status, await got.text());\n"
LINE = 'import { EnvHttpProxyAgent, setGlobalDispatcher } from "undici";\nsetGlobalDispatcher(new EnvHttpProxyAgent());\n'
TRUST = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS", "DENO_CERT", "JAVA_TOOL_OPTIONS")
AIOHTTP = """import aiohttp, asyncio, os
async def main():
    async with aiohttp.ClientSession(SETTING) as session, session.get(os.environ["URL"]) as got:
        print(got.status, await got.text())
asyncio.run(main())
"""


@dataclass
class Client:
    """How one is run. `line` is the same with the one line that it needs, where the variables alone are not enough."""

    name: str
    #: How its row in docs/clients.md begins, and what that says of proxy and CA.
    row: str
    proxy: str
    trust: str
    command: list
    line: list | None = None


def program(name):
    """One of those that run.sh installs, or the system's."""
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PROGRAMS", ""), os.environ["PATH"]]))
    return path or missing(f"{name} is not here: it is not tested")


def python(script):
    return [sys.executable, "-c", script]


def node20():
    path = Path(os.environ.get("PROGRAMS", "/nowhere")).parent / "node20/bin/node"
    return str(path) if path.exists() else missing("node 20 is not here: it is not tested")


CLIENTS = [
    Client("curl", "curl", "env", "env", lambda c: [program("curl"), "-sS", "--fail", "-w", "%{stderr}%{http_code}", URL]),
    Client("urllib", "Python `urllib`", "env", "env", lambda c: python(
        "import os, urllib.request as u; got = u.urlopen(os.environ['URL']); print(got.status, got.read().decode())")),
    Client("requests", "Python `requests`", "env", "env", lambda c: python(
        "import os, requests; got = requests.get(os.environ['URL']); print(got.status_code, got.text)")),
    Client("httpx", "Python `httpx`", "env", "env", lambda c: python(
        "import os, httpx; got = httpx.get(os.environ['URL']); print(got.status_code, got.text)")),
    Client("aiohttp", "Python `aiohttp`", "**code**", "env", lambda c: python(AIOHTTP.replace("SETTING", "")),
           lambda c: python(AIOHTTP.replace("SETTING", "trust_env=True"))),
    Client("node 20", "Node `fetch`, `http`, `https`: 20", "**no**", "env", lambda c: [node20(), c.script("plain.mjs", FETCH)],
           lambda c: [node20(), c.script("line.mjs", LINE + FETCH)]),
    Client("node 24", "Node `fetch`, `http`, `https`: 22.21+, 24.5+", "env", "env", lambda c: [c.node24(), c.script("plain.mjs", FETCH)]),
    Client("deno", "Deno", "env", "env", lambda c: [
        program("deno"), "run", "--no-config", f"--allow-net={HOST}", "--allow-env=URL", c.script("deno.mjs", FETCH.replace("process.env.URL", 'Deno.env.get("URL")'))]),
    Client("bun", "Bun", "env", "env", lambda c: [program("bun"), "run", c.script("bun.mjs", FETCH)]),
    Client("java 17", "Java `HttpClient`, `HttpURLConnection`", "**opt-in**", "**opt-in**", lambda c: [
        program("java"), str(Path(__file__).with_name("Client.java")), URL]),
]


class Clients(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.folder = Path(temporary.name)
        origin = cls.origin = Origin(cls.folder)
        cls.addClassCleanup(origin.server.server_close)
        cls.addClassCleanup(origin.server.shutdown)
        cls.ports = {"proxy": free_port(), "admin": free_port(), "health": free_port()}
        template = template_of(injector_objects({"outgate": {"ports": cls.ports, "ca": {"extraConfigMap": "company-roots"}}}))
        app = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "shop", "annotations": {
            "outgate.dev/credentials-secret": "keys", "outgate.dev/runtimes": "java"}}, "spec": {"containers": [
                {"name": "shop", "image": "shop:1", "securityContext": {"runAsUser": os.getuid(), "runAsGroup": os.getgid()}}]}}
        cls.pod = Pod(command_line([app], template)[0][0]["spec"], {
            "outgate-policy": {"proxy.yaml": "version: 1\n"}, "keys": {"stripe": KEY}, "company-roots": {"company.pem": origin.ca}})
        cls.addClassCleanup(cls.pod.close)
        cls.pod.mount(cls.pod.sidecar)
        cls.pod.swap("outgate-policy", {"proxy.yaml": cls.pod.rewritten(cls.pod.sidecar, policy(cls.ports["proxy"], origin.port))})
        cls.pod.start()
        cls.pod.mount(cls.pod.app())
        cls.variables = cls.pod.environment(cls.pod.app())
        # Where Node looks for packages beside a script.
        programs = Path(os.environ.get("PROGRAMS", "/nowhere")).parent
        if programs.is_dir():
            (cls.folder / "node_modules").symlink_to(programs)

    def setUp(self):
        self.origin.seen.clear()

    def script(self, name, text):
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def node24(self):
        """The first whose `fetch` goes by the variables."""
        node = program("node")
        version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout
        if int(version[1:].split(".")[0]) < 24:
            missing(f"node is {version.strip()}, and does not go by the variables: it is not tested")
        return node

    def run_with(self, command, without=(), url=URL):
        """The variables, and a home of its own, so that nobody's settings have a say."""
        variables = {name: value for name, value in self.variables.items() if name not in without}
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0", "URL": url} | variables
        return subprocess.run([str(one) for one in command], env=environment, cwd=self.folder, capture_output=True, text=True, timeout=120)

    def assert_seen(self, *paths):
        """All that came since the last look."""
        self.assertEqual(self.origin.seen, [{"path": path, "authorization": f"Bearer {KEY}"} for path in paths])
        self.origin.seen.clear()

    def check(self, client):
        times = 2 if client.name.startswith("java") else 1
        if client.line:
            # The variables alone do not bring it to outgate: it looks for the host itself, and there is none.
            self.assertNotEqual(self.run_with(client.command(self)).returncode, 0)
            self.assert_seen()
            # The local endpoint wants none of all that.
            done = self.run_with(client.command(self), without=self.variables, url=f"http://127.0.0.1:{self.ports['proxy']}/stripe/v1/local")
            self.assertIn('{"ok": true}', done.stdout, done.stderr)
            self.assert_seen("/v1/local")
        command = (client.line or client.command)(self)
        done = self.run_with(command)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(len(re.findall(r'200', done.stdout + done.stderr)), times, done.stdout + done.stderr)
        self.assertEqual(done.stdout.count('{"ok": true}'), times, done.stdout)
        self.assert_seen(*["/v1/balance"] * times)
        # It is these variables that make the trust, and the others the way.
        self.assertNotEqual(self.run_with(command, without=TRUST).returncode, 0)
        self.assert_seen()
        proxies = [name for name in self.variables if name.upper() in ("HTTPS_PROXY", "HTTP_PROXY", "JAVA_TOOL_OPTIONS")]
        self.assertNotEqual(self.run_with(command, without=proxies).returncode, 0)
        self.assert_seen()

    def test_git(self):
        """What it gets is no repository; but it comes there, trusts what it sees, and has the credential."""
        git = program("git")
        done = self.run_with([git, "ls-remote", f"https://{HOST}/a.git"])
        # The answer looks like that of a server without the smart protocol, so it asks as for files.
        self.assert_seen("/a.git/info/refs?service=git-upload-pack", "/a.git/HEAD")
        self.assertEqual(done.returncode, 0, done.stderr)
        distrusted = self.run_with([git, "ls-remote", f"https://{HOST}/a.git"], without=TRUST)
        self.assertRegex(distrusted.stderr, "certificate")
        self.assert_seen()

    def test_uv(self):
        """A client in Rust, with rustls. What it gets is no index of packages; but it comes there, trusts what it sees, and has the credential."""
        command = [Path(sys.executable).with_name("uv"), "--no-config", "pip", "install", "--dry-run", "--target", self.folder / "uv",
                   "--python", sys.executable, "--index-url", f"https://{HOST}/simple", "nothing"]
        done = self.run_with(command)
        self.assert_seen("/simple/nothing/")
        self.assertNotIn("certificate", done.stderr)
        self.assertRegex(self.run_with(command, without=TRUST).stderr, "certificate|UnknownIssuer")
        self.assert_seen()

    def test_the_table_is_that_of_the_documents(self):
        """docs/clients.md has a row for each, says the same, and that it is tested."""
        rows = [line for line in (ROOT / "docs/clients.md").read_text().splitlines() if line.startswith("| ")]
        others = [Client("git", "git over https", "env", "env", None), Client("uv", "uv", "env", "env", None)]
        for client in [*CLIENTS, *others]:
            row, = [line for line in rows if line.startswith(f"| {client.row}")]
            name, proxy, trust, *_ = [cell.strip() for cell in row.strip("|").split(" | ")]
            self.assertIn("**tested** by `make test-packaging`", name)
            self.assertEqual((proxy.split(" ")[0].rstrip(","), trust.split(" ")[0]), (client.proxy, client.trust), row)
            self.assertEqual(client.line is not None, client.proxy in ("**code**", "**no**"), row)


def add(client):
    def test(self):
        self.check(client)

    setattr(Clients, "test_" + re.sub(r"\W", "_", client.name), test)


for one in CLIENTS:
    add(one)

if __name__ == "__main__":
    unittest.main()
