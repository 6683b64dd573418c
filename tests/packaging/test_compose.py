"""The example of Compose, started: the app has no way out but outgate, and outgate alone the secret.

By podman-compose and podman: Docker's own is not at hand in CI, and judges the file where it is. What the test puts in the place of the example's is in `OVERRIDE`: images that are
built here, a provider on this machine, and the secret from a file, as podman-compose takes none from the environment; and whose the memory at /tmp is. The health check is asked
by hand, for which podman wants systemd.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import yaml

from engine import ROOT, missing
from image import NETAVARK, TAG, shared
from kubelet import APP, app_image
from pod import until
from test_pod import Origin

TOKEN = "ghp_canary_of_the_composed_app"
HOST = "api.github.com"

OVERRIDE = f"""
services:
  outgate:
    image: {TAG}
    volumes: [./company.pem:/etc/outgate/company.pem:ro]
  app:
    image: {APP}
    entrypoint: [/usr/bin/curl]
    user: "1000:1000"
    volumes: [/usr:/usr:ro]
secrets:
  github-token: {{ file: ./token }}
"""


class Compose(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        program = Path(sys.executable).with_name("podman-compose")
        for what in (program, NETAVARK, NETAVARK.with_name("aardvark-dns")):
            if not what.exists():
                missing(f"{what.name} is not here: the example of Compose is not started")
        cls.image = shared()
        app_image(cls.image)
        cls.program = program

    def compose(self, *arguments, check=True):
        return self.image.call(self.program, "-p", self.project, "-f", "compose.yaml", "-f", "override.yaml", *arguments, cwd=self.folder, check=check)

    def test_the_example_runs(self):
        folder = self.folder = Path(tempfile.mkdtemp(prefix="compose-"))
        self.addCleanup(shutil.rmtree, folder)
        folder.chmod(0o755)
        self.project = f"outgate{os.getpid()}"
        example = yaml.safe_load((ROOT / "examples/compose/compose.yaml").read_text())
        for service in example["services"].values():
            service.pop("build", None)
        self.assertEqual(example["secrets"]["github-token"].pop("environment"), "GITHUB_TOKEN")
        # podman gives a tmpfs to root alone.
        self.assertEqual(example["services"]["outgate"]["tmpfs"], ["/tmp:mode=0700,uid=65532,gid=65532"])
        example["services"]["outgate"]["tmpfs"] = ["/tmp:mode=1777"]
        policy = (ROOT / "examples/compose/proxy.yaml").read_text()
        for name, text in (("compose.yaml", yaml.safe_dump(example)), ("override.yaml", OVERRIDE), ("token", TOKEN), ("company.pem", ""), ("proxy.yaml", policy)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o644)
        self.addCleanup(self.compose, "down", "-v", "-t", "1", check=False)
        self.compose("up", "-d", "outgate")
        outgate = f"{self.project}_outgate_1"
        self.healthy(outgate)
        # A provider at this machine's address in the network that leads out; then, as the README says of a changed policy, a restart.
        gateway, internal = self.network("world")
        self.assertEqual(internal, "false")
        origin = Origin(folder, HOST, gateway)
        self.addCleanup(origin.server.server_close)
        self.addCleanup(origin.server.shutdown)
        self.assertIn(f"    hosts: [{HOST}]\n", policy)
        (folder / "proxy.yaml").write_text(policy.replace(f"    hosts: [{HOST}]\n", f"    hosts: [{HOST}]\n    upstream: {{ connect_to: \"{gateway}:{origin.port}\", "
                                                          "tls: { ca: /etc/outgate/company.pem } }\n"))
        (folder / "company.pem").write_text(origin.ca)
        self.compose("restart", "outgate")
        self.healthy(outgate)

        done = self.compose("run", "--rm", "--no-deps", "-T", "app", *example["services"]["app"]["command"])
        self.assertIn('{"ok": true}', done.stdout, done.stderr)
        self.assertEqual(origin.seen, [{"path": "/user", "authorization": f"Bearer {TOKEN}"}])
        self.assertEqual(self.network("app")[1], "true")
        for words, why in ((["-sS", "--max-time", "3", "--noproxy", "*", "-k", "--resolve", f"{HOST}:{origin.port}:{gateway}", f"https://{HOST}:{origin.port}/user"],
                            "there is no other way out"),
                           (["-sS", "--max-time", "5", "--fail", "https://elsewhere.example/"], "and outgate denies what the policy does not name"),
                           (["-sS", "file:///run/secrets/github-token"], "nor is the secret there"),
                           (["-sS", "file:///var/run/outgate/ca/ca.key"], "nor the CA's key")):
            done = self.compose("run", "--rm", "--no-deps", "-T", "app", *words, check=False)
            self.assertNotEqual(done.returncode, 0, why)
            self.assertNotIn(TOKEN, done.stdout + done.stderr)
        self.assertEqual(len(origin.seen), 1)
        status = self.image.podman("exec", outgate, "/usr/local/bin/outgate", "probe", "--path=/readyz", check=False)
        self.assertEqual(status.returncode, 0, status.stderr)
        self.compose("stop", "outgate")
        self.assertEqual(self.image.podman("inspect", "-f", "{{.State.ExitCode}}", outgate).stdout.strip(), "0")

        if shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
            done = subprocess.run(["docker", "compose", "-f", ROOT / "examples/compose/compose.yaml", "config", "-q"], capture_output=True, text=True,
                                  env={"GITHUB_TOKEN": "x", "PATH": os.environ["PATH"]})
            self.assertEqual(done.returncode, 0, done.stderr)

    def healthy(self, container):
        """By the image's own check."""
        try:
            until("outgate is healthy", lambda: self.image.podman("healthcheck", "run", container, check=False).returncode == 0, 60)
        except AssertionError:
            told = self.image.podman("logs", container, check=False)
            raise AssertionError(told.stdout + told.stderr) from None

    def network(self, name):
        """This machine's address in it, and whether it is internal."""
        done = self.image.podman("network", "inspect", "-f", "{{range .Subnets}}{{.Gateway}}{{end}} {{.Internal}}", f"{self.project}_{name}")
        return done.stdout.split()


if __name__ == "__main__":
    unittest.main()
