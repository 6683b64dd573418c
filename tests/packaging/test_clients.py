"""Programs with clients of their own, with nothing but the variables that `outgate env` prints: intercepted, and with the credential."""

import json
import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from engine import OUTGATE, missing
from pod import free_port, until
from test_pod import HOST, KEY, Origin

FETCH = f'const got = await fetch("https://{HOST}/v1/balance"); console.log(got.status, await got.text());'


def program(name):
    """One of those that run.sh installs, or the system's."""
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PROGRAMS", ""), os.environ["PATH"]]))
    return path or missing(f"{name} is not here: it is not tested")


class Clients(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.temporary.cleanup)
        folder = cls.folder = Path(cls.temporary.name)
        origin = cls.origin = Origin(folder)
        cls.addClassCleanup(origin.server.server_close)
        cls.addClassCleanup(origin.server.shutdown)
        (folder / "secret").write_text(KEY)
        admin = free_port()
        (folder / "proxy.yaml").write_text(f"""version: 1
listeners: [{{ address: "127.0.0.1:{free_port()}" }}]
admin: {{ address: "127.0.0.1:{admin}" }}
interception: {{ ca: {{ directory: ca }}, bundle: bundle.pem }}
providers:
  stripe:
    hosts: [{HOST}]
    upstream: {{ connect_to: "127.0.0.1:{origin.port}", tls: {{ ca: ca.pem }} }}
    credential: {{ bearer: "file:secret" }}
""")
        log = open(folder / "outgate.log", "wb")
        cls.addClassCleanup(log.close)
        process = subprocess.Popen([OUTGATE, "run", "--config", folder / "proxy.yaml"], stdout=log, stderr=log)
        cls.addClassCleanup(process.wait, 20)
        cls.addClassCleanup(process.terminate)
        probe = [OUTGATE, "probe", "--address", f"127.0.0.1:{admin}", "--path", "/readyz"]
        until("outgate", lambda: subprocess.run(probe, capture_output=True).returncode == 0)
        told = subprocess.run([OUTGATE, "env", "--config", folder / "proxy.yaml", "--format", "json"], capture_output=True, text=True)
        cls.variables = json.loads(told.stdout)

    def run_with(self, *command, without=()):
        """The variables, and a home of its own, so that nobody's settings have a say."""
        variables = {name: value for name, value in self.variables.items() if name not in without}
        environment = {"PATH": os.environ["PATH"], "HOME": self.temporary.name, "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"} | variables
        return subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=60)

    def assert_seen(self, *paths):
        """All that came since the last look."""
        self.assertEqual(self.origin.seen, [{"path": path, "authorization": f"Bearer {KEY}"} for path in paths])
        self.origin.seen.clear()

    def setUp(self):
        self.origin.seen.clear()

    def test_git(self):
        """What it gets is no repository; but it comes there, trusts what it sees, and has the credential."""
        git = program("git")
        done = self.run_with(git, "ls-remote", f"https://{HOST}/a.git")
        # The answer looks like that of a server without the smart protocol, so it asks as for files.
        self.assert_seen("/a.git/info/refs?service=git-upload-pack", "/a.git/HEAD")
        self.assertEqual(done.returncode, 0, done.stderr)
        distrusted = self.run_with(git, "ls-remote", f"https://{HOST}/a.git", without=("GIT_SSL_CAINFO", "SSL_CERT_FILE", "CURL_CA_BUNDLE"))
        self.assertRegex(distrusted.stderr, "certificate")
        self.assert_seen()

    def check_fetch(self, *command, trust):
        done = self.run_with(*command)
        self.assertEqual((done.returncode, done.stdout.strip()), (0, '200 {"ok": true}'), done.stderr)
        self.assert_seen("/v1/balance")
        # It is these variables that make the trust.
        self.assertNotEqual(self.run_with(*command, without=trust).returncode, 0)
        self.assert_seen()

    def script(self, name):
        path = self.folder / name
        path.write_text(FETCH)
        return path

    def test_deno(self):
        self.check_fetch(program("deno"), "run", "--no-config", f"--allow-net={HOST}", self.script("deno.mjs"), trust=("DENO_CERT", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"))

    def test_bun(self):
        self.check_fetch(program("bun"), "run", self.script("bun.mjs"), trust=("NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"))

    def test_node(self):
        """24, the first whose `fetch` goes by the variables."""
        node = program("node")
        version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout
        if int(version[1:].split(".")[0]) < 24:
            missing(f"node is {version.strip()}, and does not go by the variables: it is not tested")
        self.check_fetch(node, self.script("node.mjs"), trust=("NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"))


if __name__ == "__main__":
    unittest.main()
