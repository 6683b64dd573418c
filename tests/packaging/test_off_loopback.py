"""The admin listener where others reach it: off loopback, asked by another machine (a network namespace of its own)."""

import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from engine import OUTGATE, missing
from pod import until
from test_redirect import PROXY, V4, Network, tool

TOKEN = "an-admin-token-that-is-long-enough"

POLICY = f"""version: 1
admin: {{ address: "{V4}.1:9901"TOKEN }}
interception: {{ ca: {{ directory: FOLDER/ca }}, bundle: FOLDER/bundle.pem }}
providers:
  api: {{ hosts: [api.provider.test], breaker: {{}} }}
"""


class Admin(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if os.getuid() != 0:
            missing("not root: network namespaces are not made")
        for name in ("ip", "setpriv", "curl"):
            tool(name)
        cls.network = Network()
        cls.addClassCleanup(cls.network.close)

    def start(self, token):
        folder = Path(tempfile.mkdtemp(prefix="admin-"))
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        program = folder / "outgate"
        shutil.copy(OUTGATE, program)
        (folder / "token").write_text(TOKEN)
        text = POLICY.replace("FOLDER", str(folder)).replace("TOKEN", f', token: "file:{folder}/token"' if token else "")
        (folder / "proxy.yaml").write_text(text)
        for path in (folder, *folder.iterdir()):
            os.chown(path, PROXY, PROXY)
        program.chmod(0o755)
        with open(folder / "log", "wb") as log:
            process = self.network.start(self.network.pod, program, "run", "--config", folder / "proxy.yaml", uid=PROXY, stdout=log, stderr=log)
        self.addCleanup(process.wait, 20)
        self.addCleanup(process.terminate)
        until("it is ready", lambda: self.ask("/readyz")[0] == 200 or process.poll() is not None)
        self.assertIsNone(process.poll(), (folder / "log").read_text())
        return process

    def ask(self, path, *arguments):
        """Status and fields, as another machine gets them."""
        command = self.network.command(self.network.far, "curl", "-sS", "-i", "--noproxy", "*", "--max-time", "10", *arguments, f"http://{V4}.1:9901{path}")
        text = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
        head, _, body = text.partition("\n\n")
        lines = head.splitlines()
        status = int(lines[0].split()[1]) if lines else 0
        return status, dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line), body

    CLOSED = [("GET", "/status"), ("GET", "/"), ("GET", "/config"), ("POST", "/reload"), ("POST", "/quit"), ("POST", "/breakers/api/open")]

    def refused(self, *arguments):
        for method, path in self.CLOSED:
            status, fields, body = self.ask(path, "-X", method, *arguments)
            self.assertEqual((status, fields.get("www-authenticate")), (401, "bearer"), f"{method} {path} {arguments}: {body}")
            self.assertIn("error=http_request_error", fields["proxy-status"])
            self.assertNotIn("provider", body)

    def test_without_a_token_only_health_and_metrics_answer(self):
        process = self.start(token=False)
        self.refused()
        self.refused("-H", "Authorization: Bearer guessed")
        self.refused("-H", "Host: localhost:9901")
        for path in ("/healthz", "/readyz", "/metrics"):
            self.assertEqual(self.ask(path)[0], 200, path)
        self.assertIsNone(process.poll(), "nobody ended it")

    def test_with_a_token_it_answers_to_that(self):
        process = self.start(token=True)
        self.refused()
        self.refused("-H", f"Authorization: Bearer {TOKEN}x")
        token = ["-H", f"Authorization: Bearer {TOKEN}"]
        status, _, body = self.ask("/status", *token)
        self.assertEqual(status, 200, body)
        self.assertNotIn(TOKEN, body)
        self.assertEqual(self.ask("/breakers/api/open", "-X", "POST", *token)[0], 200)
        self.assertEqual(self.ask("/status", *token, "-H", "Origin: https://evil.example")[0], 403, "nor to web pages")
        self.assertEqual(self.ask("/quit", "-X", "POST", *token)[0], 202)
        self.assertEqual(process.wait(20), 0)


if __name__ == "__main__":
    unittest.main()
