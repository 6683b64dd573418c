"""The image: what is in it, and that it runs as the chart runs it."""

import os
import subprocess
import time
import unittest
from pathlib import Path

from engine import ROOT, missing
from image import REDIRECT_TAG, TAG, Image, included, shared, shared_redirect

MIB = 1024 * 1024


class Dockerfile(unittest.TestCase):
    def test_hadolint(self):
        done = subprocess.run(["hadolint", "--config", ROOT / ".hadolint.yaml", ROOT / "Dockerfile", ROOT / "Dockerfile.redirect"],
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_only_what_both_builders_understand(self):
        text = "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
        for word in ("<<", "--link", "--parents", "--checksum", "--network", "--security", "ADD "):
            self.assertNotIn(word, text)

    def test_what_the_compiler_reads_is_in_the_context(self):
        """Judged here too, because not every machine builds an image. The file is a list of top-level names behind `*`."""
        lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
        self.assertEqual(lines[0], "*")
        allowed = {line.removeprefix("!") for line in lines[1:]}
        read = included()
        self.assertIn("presets/github.yaml", read)
        self.assertEqual([path for path in read if path.split("/")[0] not in allowed], [])

    def test_a_base_is_named_as_the_toolchain(self):
        import re
        wanted = re.search(r'rust-version = "(.+)"', (ROOT / "Cargo.toml").read_text())[1]
        self.assertIn(f"rust:{wanted}-", (ROOT / "Dockerfile").read_text())


class Built(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.image = shared()

    def test_what_it_says_of_itself(self):
        config = self.image.inspect()["Docker"]["config"]
        self.assertEqual(config["User"], "65532:65532")
        self.assertEqual(config["Entrypoint"], ["/usr/local/bin/outgate"])
        self.assertEqual(config["Cmd"], ["run"])
        self.assertEqual(config["StopSignal"], "SIGTERM")
        self.assertEqual(config["Healthcheck"]["Test"], ["CMD", "/usr/local/bin/outgate", "probe"])
        self.assertEqual(set(config["ExposedPorts"]), {"3128/tcp", "9902/tcp"})
        labels = config["Labels"]
        self.assertEqual(labels["org.opencontainers.image.title"], "outgate")
        self.assertEqual(labels["org.opencontainers.image.licenses"], "MIT OR Apache-2.0")
        self.assertEqual(labels["org.opencontainers.image.revision"], "0123abc")

    def test_what_is_in_it(self):
        files = self.image.files()
        program = files["usr/local/bin/outgate"]
        self.assertEqual((oct(program.st_mode & 0o7777), program.st_uid), ("0o555", 0), "it cannot replace itself")
        shells = [name for name in files if name.rsplit("/", 1)[-1] in ("sh", "bash", "dash", "busybox", "cargo")]
        self.assertEqual(shells, [])
        self.assertFalse([name for name in files if name.startswith("src") or "ca.key" in name or name.endswith(".env")])
        size = sum(one.st_size for one in files.values())
        print(f"\n# image {size / MIB:.1f} MiB, of it the program {program.st_size / MIB:.1f} MiB")
        if program.st_size > 25 * MIB:
            missing("a debug build: the image's size is not judged")
        self.assertLess(size, 35_000_000)

    def run_with(self, folder, *arguments, command=()):
        """A container of the image with a policy, as the chart runs it; no network but loopback."""
        (folder / "policy").mkdir(exist_ok=True)
        (folder / "policy/proxy.yaml").write_text("version: 1\n")
        # A new volume: that the user of the image may write to it is the image's doing.
        mounts = ["-v", f"{folder}/policy:/etc/outgate/policy:ro", "-v", f"state-{folder.name}:/var/lib/outgate"]
        settings = "interception.ca={directory: /var/lib/outgate/ca}\ninterception.bundle=/var/lib/outgate/bundle.pem\nruntime.drain=3s"
        return self.image.podman("run", "-d", "--network=none", *Image.TIGHT, "--memory=128m", "-e", f"OUTGATE_SET={settings}", *mounts,
                                 *arguments, TAG, *command).stdout.strip()

    def status(self, container):
        pid = self.image.podman("inspect", "-f", "{{.State.Pid}}", container).stdout.strip()
        text = Path(f"/proc/{pid}/status").read_text()
        return {line.split(":")[0]: line.split(":", 1)[1].split() for line in text.splitlines()}

    def test_it_runs_with_nothing(self):
        folder = self.image.folder / "tight"
        folder.mkdir()
        begun = time.monotonic()
        container = self.run_with(folder)
        self.addCleanup(self.image.podman, "rm", "-f", container, check=False)
        probe = ["exec", container, "/usr/local/bin/outgate", "probe", "--path=/readyz", "--wait=20"]
        self.image.podman(*probe)
        print(f"\n# container ready after {time.monotonic() - begun:.1f} s, podman included")
        status = self.status(container)
        self.assertEqual((status["Uid"][1], status["Gid"][1]), ("65532", "65532"))
        for capabilities in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
            self.assertEqual(int(status[capabilities][0], 16), 0, capabilities)
        self.assertEqual((status["NoNewPrivs"], status["Seccomp"]), (["1"], ["2"]))
        resident, own = (int(status[key][0]) / 1024 for key in ("VmRSS", "RssAnon"))
        print(f"# resident {resident:.1f} MiB, idle; of it {own:.1f} MiB that is not the program's file")
        # The image's own health check.
        self.assertEqual(self.image.podman("healthcheck", "run", container, check=False).returncode, 0)
        self.assertNotEqual(self.image.podman("exec", container, "/bin/sh", "-c", "true", check=False).returncode, 0)
        # What `kubectl exec` would ask.
        told = self.image.podman("exec", container, "/usr/local/bin/outgate", "explain", "GET", "https://a.example/", check=False)
        self.assertEqual(told.returncode, 4, told.stdout + told.stderr)
        begun = time.monotonic()
        self.image.podman("stop", "-t", "10", container)
        self.assertLess(time.monotonic() - begun, 8)
        self.assertEqual(self.image.podman("inspect", "-f", "{{.State.ExitCode}}", container).stdout.strip(), "0")
        volume = Path(self.image.podman("volume", "inspect", "-f", "{{.Mountpoint}}", "state-tight").stdout.strip())
        key = (volume / "ca/ca.key").stat()
        self.assertEqual((key.st_uid, oct(key.st_mode & 0o777)), (65532, "0o600"))

    def test_a_policy_with_a_mistake_says_so(self):
        folder = self.image.folder / "wrong"
        folder.mkdir()
        container = self.run_with(folder, command=("run", "--set", "admin.health_adress=0.0.0.0:9902"))
        self.addCleanup(self.image.podman, "rm", "-f", container, check=False)
        code = self.image.podman("wait", container).stdout.strip()
        self.assertEqual(code, "3")
        self.assertIn("health_address", self.image.podman("logs", container).stderr)


class Redirect(unittest.TestCase):
    """The image of Dockerfile.redirect. test_kubelet runs it in a pod."""

    @classmethod
    def setUpClass(cls):
        cls.image = shared_redirect()

    def test_what_it_says_of_itself_and_holds(self):
        config = self.image.inspect(REDIRECT_TAG)["Docker"]["config"]
        self.assertEqual((config["User"], config["Entrypoint"], config["Cmd"]), ("0:0", ["/usr/local/bin/outgate"], ["redirect", "--help"]))
        self.assertEqual(config["Labels"]["org.opencontainers.image.title"], "outgate-redirect")
        files = self.image.files(REDIRECT_TAG)
        program = files["usr/local/bin/outgate"]
        self.assertEqual((oct(program.st_mode & 0o7777), program.st_uid), ("0o555", 0))
        self.assertIn("usr/sbin/nft", files)
        self.assertFalse([name for name in files if name.startswith("var/lib/apt/lists/")])

    def test_it_makes_and_checks_the_rules(self):
        """In a network of its own, each call a container: read-only, NET_ADMIN and nothing else."""
        network = f"og-rules-{os.getpid()}"
        subprocess.run(["ip", "netns", "add", network], check=True)
        self.addCleanup(subprocess.run, ["ip", "netns", "del", network], check=True)

        def run(*arguments, capabilities=("--cap-add=NET_ADMIN",)):
            return self.image.podman("run", "--rm", f"--network=ns:/run/netns/{network}", *Image.TIGHT, *capabilities, REDIRECT_TAG, *arguments, check=False)

        self.assertIn("setup", run().stdout, "without arguments it shows what there is")
        self.assertEqual(run("redirect", "check", "--uid=64532").returncode, 5, "there are no rules yet")
        refused = run("redirect", "setup", "--uid=64532", capabilities=())
        self.assertEqual((refused.returncode, refused.stderr != ""), (1, True), "without the capability it says so")
        for step, code in ((("setup", "--uid=64532"), 0), (("check", "--uid=64532"), 0), (("check", "--uid=64533"), 5), (("remove",), 0), (("check", "--uid=64532"), 5)):
            done = run("redirect", *step)
            self.assertEqual(done.returncode, code, f"{step}: {done.stdout}{done.stderr}")


if __name__ == "__main__":
    unittest.main()
