"""The unit of systemd: systemd reads it, and what it starts is right."""

import re
import shlex
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from engine import OUTGATE, ROOT, missing

UNIT = ROOT / "examples" / "systemd" / "outgate.service"


def lines(key):
    text = UNIT.read_text().replace("\\\n", " ")
    return [line.split("=", 1)[1] for line in text.splitlines() if line.startswith(f"{key}=")]


class Unit(unittest.TestCase):
    def analyze(self, *arguments):
        if not shutil.which("systemd-analyze"):
            missing("systemd-analyze is not here: the unit is not looked at")
        with tempfile.TemporaryDirectory() as folder:
            unit = Path(folder) / "outgate.service"
            unit.write_text(UNIT.read_text().replace("/usr/local/bin/outgate", OUTGATE))
            return subprocess.run(["systemd-analyze", *arguments, unit], capture_output=True, text=True)

    def test_systemd_reads_it(self):
        done = self.analyze("verify", "--man=no")
        told = [line for line in (done.stdout + done.stderr).splitlines() if "outgate.service" in line]
        self.assertEqual(told, [])

    def test_it_is_hardened(self):
        done = self.analyze("security", "--offline=true", "--no-pager")
        level = float(re.search(r"exposure level for outgate.service: ([0-9.]+)", done.stdout)[1])
        print(f"\n# exposure level {level}")
        self.assertLess(level, 2.0)

    def test_what_it_starts(self):
        command = shlex.split(lines("ExecStart")[0])
        self.assertEqual(command[:2], ["/usr/local/bin/outgate", "run"])
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "proxy.yaml").write_text("version: 1\n")
            arguments = [folder if one == "/etc/outgate/policy" else one for one in command[2:]]
            done = subprocess.run([OUTGATE, "check", *arguments], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            command = ["0" if one == "30" else one for one in shlex.split(lines("ExecStartPost")[0])[1:]]
            done = subprocess.run([OUTGATE, *command, "--address", "127.0.0.1:1"], capture_output=True, text=True)
            self.assertNotEqual(done.returncode, 2, done.stderr)

    def test_times_fit(self):
        self.assertGreater(int(lines("TimeoutStopSec")[0]), 20, "runtime.drain is 20s")


if __name__ == "__main__":
    unittest.main()
