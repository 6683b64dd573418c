"""The units of systemd: systemd reads them, what they start is right, and sockets are taken over as systemd hands them over."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import unittest
from pathlib import Path

from engine import OUTGATE, ROOT, missing
from pod import free_port

UNIT = ROOT / "examples" / "systemd" / "outgate.service"
SOCKET = UNIT.with_name("outgate.socket")


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
            shutil.copy(SOCKET, folder)
            return subprocess.run(["systemd-analyze", *arguments, unit], capture_output=True, text=True)

    def test_systemd_reads_it(self):
        done = self.analyze("verify", "--man=no")
        told = [line for line in (done.stdout + done.stderr).splitlines() if "outgate.s" in line]
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

    def test_the_socket_is_the_one_that_the_service_takes(self):
        given = dict(line.split("=", 1) for line in SOCKET.read_text().splitlines() if "=" in line and not line.startswith("#"))
        self.assertIn(f"systemd:{given['FileDescriptorName']}", lines("ExecStart")[0])
        self.assertEqual(given["ListenStream"], "127.0.0.1:3128", "where `outgate env` and the examples have it")
        self.assertEqual((lines("Requires"), lines("Also")), (["outgate.socket"], ["outgate.socket"]))

    def test_times_fit(self):
        self.assertGreater(int(lines("TimeoutStopSec")[0]), 40, "runtime.drain is 20s, and the exchange of a refresh token has 40s from its begin")


class Activation(unittest.TestCase):
    """A small stand-in for systemd: descriptors from 3 on, and three variables."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name)
        self.admin = free_port()

    def policy(self, *listeners):
        path = self.folder / "proxy.yaml"
        path.write_text("version: 1\nlisteners:\n" + "".join(f"  - {{ {one} }}\n" for one in listeners)
                        + f'admin: {{ address: "127.0.0.1:{self.admin}" }}\n'
                        + "interception: { ca: { directory: ca }, bundle: bundle.pem }\n")
        return path

    def listening(self, address, family=socket.AF_INET):
        one = socket.socket(family)
        self.addCleanup(one.close)
        one.bind(address)
        one.listen(16)
        return one

    def activate(self, sockets, policy, pid=None):
        """Starts outgate as systemd would."""
        log = open(self.folder / "log", "ab")
        child = os.fork()
        if child == 0:
            try:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                # Out of the way first: a descriptor may stand where another has to go.
                moved = [os.dup(one.fileno()) for _, one in sockets]
                high = [os.dup2(fd, 200 + place) for place, fd in enumerate(moved)]
                for place, fd in enumerate(high):
                    os.dup2(fd, 3 + place, inheritable=True)
                os.closerange(3 + len(sockets), 256)
                variables = {"PATH": os.environ["PATH"], "LISTEN_PID": str(pid or os.getpid()), "LISTEN_FDS": str(len(sockets)),
                             "LISTEN_FDNAMES": ":".join(name for name, _ in sockets)}
                os.execve(OUTGATE, [OUTGATE, "run", "--config", str(policy)], variables)
            finally:
                os._exit(99)
        log.close()
        self.addCleanup(self.end, child)
        return child

    def end(self, child):
        """Its exit code; 0 also where it is gone already."""
        try:
            os.kill(child, signal.SIGTERM)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        except (ProcessLookupError, ChildProcessError):
            return 0

    def ended(self, child):
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def log(self):
        return (self.folder / "log").read_text()

    def ask(self, address, family=socket.AF_INET):
        client = socket.socket(family)
        self.addCleanup(client.close)
        client.settimeout(20)
        client.connect(address)
        client.sendall(b"GET /nobody HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return client

    def assert_answered(self, client):
        answer = b""
        while more := client.recv(65536):
            answer += more
        self.assertIn(b"outgate-error: denied", answer.lower(), self.log())

    def test_sockets_are_taken_over_by_their_names(self):
        tcp, path = self.listening(("127.0.0.1", 0)), str(self.folder / "own.sock")
        second = self.listening(("127.0.0.1", 0))
        unix = self.listening(path, socket.AF_UNIX)
        policy = self.policy('address: "systemd:proxy"', 'address: "systemd:local"')
        # Who calls before outgate is there waits.
        early = self.ask(tcp.getsockname())
        child = self.activate([("local", unix), ("proxy", tcp), ("proxy", second), ("other", self.listening(("127.0.0.1", 0)))], policy)
        self.assert_answered(early)
        self.assert_answered(self.ask(second.getsockname()))
        self.assert_answered(self.ask(path, socket.AF_UNIX))
        self.assertIn("no listener of the policy is for", self.log())
        # Programs that outgate starts do not inherit them.
        for fd in (3, 4, 5):
            flags = re.search(r"^flags:\s*([0-7]+)", Path(f"/proc/{child}/fdinfo/{fd}").read_text(), re.M)[1]
            self.assertTrue(int(flags, 8) & os.O_CLOEXEC, fd)
        self.assertEqual(self.end(child), 0)
        self.assertTrue(os.path.exists(path), "the file is systemd's")

    def test_nobody_is_refused_between_two_runs(self):
        tcp = self.listening(("127.0.0.1", 0))
        policy = self.policy('address: "systemd:proxy"')
        first = self.activate([("proxy", tcp)], policy)
        self.assert_answered(self.ask(tcp.getsockname()))
        self.assertEqual(self.end(first), 0)
        between = self.ask(tcp.getsockname())
        second = self.activate([("proxy", tcp)], policy)
        self.assert_answered(between)
        self.assertEqual(self.end(second), 0)

    def test_what_is_missing_or_not_meant_for_it(self):
        policy = self.policy('address: "systemd:proxy"')
        tcp = self.listening(("127.0.0.1", 0))
        # One that is only bound, and a connection.
        bound = socket.socket()
        self.addCleanup(bound.close)
        bound.bind(("127.0.0.1", 0))
        client = socket.create_connection(tcp.getsockname())
        self.addCleanup(client.close)
        for sockets, pid in (([], None), ([("another", tcp)], None), ([("proxy", tcp)], 1), ([("proxy", bound)], None), ([("proxy", client)], None)):
            child = self.activate(sockets, policy, pid)
            self.assertEqual(self.ended(child), 1)
            self.assertIn("handed over no listening socket of this name", self.log())

    def test_an_open_address_is_looked_at_when_it_is_handed_over(self):
        tcp = self.listening(("0.0.0.0", 0))
        child = self.activate([("proxy", tcp)], self.policy('address: "systemd:proxy"'))
        self.assertEqual(self.ended(child), 1)
        self.assertIn("not loopback", self.log())
        child = self.activate([("proxy", tcp)], self.policy('address: "systemd:proxy", expose: true'))
        self.assert_answered(self.ask(("127.0.0.1", tcp.getsockname()[1])))
        self.assertEqual(self.end(child), 0)


if __name__ == "__main__":
    unittest.main()
