"""Redirection by the kernel: an app in a network namespace of its own, a provider in another, and outgate beside the app.

Everything happens in two namespaces that the test makes and takes away; nothing leaves the machine.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from engine import OUTGATE, missing
from pod import until

SECRET = "sk_canary_of_the_redirected_app"
PROXY, APP = 65532, 1000
# Networks for examples: nobody is there, and outgate has to be told that they are right.
V4, V6 = "203.0.113", "2001:db8:113::"
HOSTS = ("api.provider.test", "blind.provider.test", "unnamed.provider.test")

POLICY = f"""version: 1
listeners:
  - {{ address: "127.0.0.1:3128" }}
  - {{ address: "127.0.0.1:3129", accept: [transparent] }}
  - {{ address: "[::1]:3129", accept: [transparent] }}
admin: {{ address: "127.0.0.1:9901" }}
interception: {{ ca: {{ directory: FOLDER/ca }}, bundle: FOLDER/bundle.pem }}
telemetry: {{ access_log: {{ output: {{ file: FOLDER/access.log }} }} }}
addresses: {{ allow_private: ["{V4}.0/24", "{V6}/64"] }}
defaults: {{ upstream: {{ pool: {{ idle_timeout: 50ms }}, tls: {{ ca: FOLDER/origin.pem }} }} }}
providers:
  api:
    hosts: [api.provider.test]
    credential: {{ bearer: "file:FOLDER/secret" }}
  blind:
    hosts: [blind.provider.test]
    intercept: never
"""


def tool(name):
    if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
        missing(f"{name} is not here: redirection is not tested with it")


class Network:
    """The app's namespace and the provider's, with a cable between them."""

    def __init__(self):
        self.pod, self.far = f"og-pod-{os.getpid()}", f"og-far-{os.getpid()}"
        self.hosts = Path("/etc/netns") / self.pod
        self.running = []
        try:
            self.make()
        except BaseException:
            self.close()
            raise

    def make(self):
        ip = lambda *a: subprocess.run(["ip", *a], check=True, capture_output=True, text=True)
        for name in (self.pod, self.far):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self.pod, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", self.far)
        for name, last in ((self.pod, 1), (self.far, 10)):
            ip("-n", name, "addr", "add", f"{V4}.{last}/24", "dev", "cable")
            ip("-n", name, "-6", "addr", "add", f"{V6}{last}/64", "dev", "cable", "nodad")
            ip("-n", name, "link", "set", "cable", "up")
        # `ip netns exec` lays this file over /etc/hosts.
        self.hosts.mkdir(parents=True)
        names = " ".join(HOSTS)
        (self.hosts / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{V4}.10 {names}\n{V6}10 {names}\n")

    def command(self, where, *command, uid=None):
        user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"] if uid else []
        return ["ip", "netns", "exec", where, *user, *map(str, command)]

    def run(self, *command, uid=None, limit=30):
        """A command in the app's namespace."""
        return subprocess.run(self.command(self.pod, *command, uid=uid), capture_output=True, text=True, timeout=limit)

    def start(self, where, *command, uid=None, **options):
        process = subprocess.Popen(self.command(where, *command, uid=uid), **options)
        self.running.append(process)
        return process

    def close(self):
        for process in self.running:
            process.terminate()
            process.wait(20)
            if process.stdout:
                process.stdout.close()
        for name in (self.pod, self.far):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        shutil.rmtree(self.hosts, ignore_errors=True)


def certificates(folder):
    run = lambda *a: subprocess.run(["openssl", *a], cwd=folder, check=True, capture_output=True)
    run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "origin.key", "-out", "origin.pem",
        "-subj", "/CN=origin root", "-days", "2", "-addext", "keyUsage=critical,keyCertSign")
    run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "leaf.key", "-out", "leaf.csr", "-subj", "/CN=origin")
    names = ",".join(f"DNS:{host}" for host in HOSTS)
    (folder / "ext").write_text(f"subjectAltName={names},IP:{V4}.10\nextendedKeyUsage=serverAuth\n")
    run("x509", "-req", "-in", "leaf.csr", "-CA", "origin.pem", "-CAkey", "origin.key", "-CAcreateserial", "-days", "1", "-out", "leaf.pem",
        "-extfile", "ext")


class Rig:
    """Network, provider and outgate; started once for all tests."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="redirect-"))
        self.folder.chmod(0o755)
        certificates(self.folder)
        self.program = self.folder / "outgate"
        shutil.copy(OUTGATE, self.program)
        self.program.chmod(0o755)
        # What is outgate's own belongs to its user.
        self.own = self.folder / "own"
        self.own.mkdir()
        shutil.copy(self.folder / "origin.pem", self.own)
        (self.own / "secret").write_text(SECRET)
        (self.own / "proxy.yaml").write_text(POLICY.replace("FOLDER", str(self.own)))
        for path in (self.own, *self.own.iterdir()):
            os.chown(path, PROXY, PROXY)
        self.network = Network()
        try:
            origin = self.network.start(self.network.far, sys.executable, Path(__file__).with_name("redirect_origin.py"), self.folder, SECRET,
                                        stdout=subprocess.PIPE, text=True)
            assert origin.stdout.readline() == "ready\n"
            self.start_outgate()
        except BaseException:
            self.close()
            raise

    def start_outgate(self):
        with open(self.folder / "outgate.log", "ab") as log:
            self.outgate = self.network.start(self.network.pod, self.program, "run", "--config", self.own / "proxy.yaml", uid=PROXY,
                                              stdout=log, stderr=log)
        ready = lambda: self.network.run(self.program, "probe", "--path", "/readyz").returncode == 0
        until("outgate", ready)

    def close(self):
        self.network.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def redirect(self, *arguments):
        return self.network.run(self.program, "redirect", *arguments)

    def curl(self, url, *arguments, uid=APP, ca=None):
        """What the provider saw, or curl's exit code."""
        done = self.network.run("curl", "-sS", "--max-time", "10", "--noproxy", "*", "--cacert", ca or self.own / "bundle.pem", *arguments, url,
                                uid=uid)
        return json.loads(done.stdout) if done.returncode == 0 else done.returncode

    def records(self):
        path = self.own / "access.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def new_records(self, before, count):
        until(f"{count} records", lambda: len(self.records()) >= before + count)
        return self.records()[before:]

    def datagram(self, port, host=f"{V4}.10"):
        """What comes back to a datagram."""
        script = ("import socket,sys\nhost,port=sys.argv[1:]\ns=socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET, socket.SOCK_DGRAM)\n"
                  "s.settimeout(5)\ntry:\n s.connect((host,int(port))); s.send(b'hello'); print(s.recv(100).decode())\n"
                  "except OSError as e: print(type(e).__name__)")
        return self.network.run(sys.executable, "-c", script, host, port, uid=APP).stdout.strip()

    def stream(self, port):
        script = ("import socket,sys\ns=socket.create_connection(sys.argv[1:],5)\ns.sendall(b'hello')\nprint(s.recv(100).decode())")
        return self.network.run(sys.executable, "-c", script, f"{V4}.10", port, uid=APP).stdout.strip()


RIG = None


def setUpModule():
    global RIG
    if os.getuid() != 0:
        missing("not root: network namespaces are not made")
    for name in ("ip", "setpriv", "curl", "openssl"):
        tool(name)
    RIG = Rig()


def tearDownModule():
    if RIG:
        RIG.close()


class Nftables(unittest.TestCase):
    BACKEND, PROGRAM = "nft", "nft"

    @classmethod
    def setUpClass(cls):
        tool(cls.PROGRAM)

    def setUp(self):
        self.clean()
        self.addCleanup(self.clean)

    def clean(self):
        done = RIG.redirect("remove")
        self.assertEqual(done.returncode, 0, done.stderr)

    def redirect(self, action, *arguments):
        return RIG.redirect(action, "--backend", self.BACKEND, *arguments)

    def set_up(self, *arguments, uid=PROXY):
        done = self.redirect("setup", "--uid", str(uid), *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)

    def listing(self):
        return RIG.network.run("nft", "list", "ruleset").stdout

    def assert_intercepted(self, got, version):
        """The version is that of the provider's connection."""
        self.assertEqual(got, {"version": version, "authorized": True, "through_outgate": True})

    def test_without_rules_the_app_goes_directly(self):
        direct = {"authorized": False, "through_outgate": False}
        for family in ("-4", "-6"):
            got = RIG.curl("https://unnamed.provider.test/", family, ca=RIG.folder / "origin.pem")
            self.assertEqual(got, direct | {"version": "2"})
        self.assertEqual((RIG.datagram(443), RIG.stream(53)), ("hello", "hello"))

    def test_interception(self):
        self.set_up()
        for family in ("-4", "-6"):
            for version in ("--http1.1", "--http2"):
                before = len(RIG.records())
                self.assert_intercepted(RIG.curl("https://api.provider.test/v1", family, version), "2")
                record, = RIG.new_records(before, 1)
                self.assertEqual((record["outgate.door"], record["http.response.status_code"]), ("transparent", 200))
                self.assertEqual(record["outgate.original.address"], f"{V4}.10" if family == "-4" else f"{V6}10")
                self.assertIs(record["outgate.original.resolved"], True)
                self.assertEqual(record["network.protocol.version"], "1.1" if version == "--http1.1" else "2")

    def test_tunnel(self):
        self.set_up()
        for family in ("-4", "-6"):
            for version, spoken in (("--http1.1", "1.1"), ("--http2", "2")):
                before = len(RIG.records())
                got = RIG.curl("https://blind.provider.test/", family, version, ca=RIG.folder / "origin.pem")
                self.assertEqual(got, {"version": spoken, "authorized": False, "through_outgate": False})
                record, = RIG.new_records(before, 1)
                self.assertEqual((record["outgate.door"], record["outgate.provider"]), ("transparent", "blind"))
                self.assertGreater(record["http.response.body.size"], 100)

    def test_plain_http(self):
        self.set_up()
        for family in ("-4", "-6"):
            before = len(RIG.records())
            self.assert_intercepted(RIG.curl("http://api.provider.test/v1", family), "2")
            record, = RIG.new_records(before, 1)
            self.assertEqual((record["outgate.door"], record["server.port"], record["url.scheme"]), ("transparent", 80, "http"))

    def test_what_the_policy_does_not_name_is_out_of_reach(self):
        self.set_up()
        for url in ("https://unnamed.provider.test/", f"https://{V4}.10/", f"https://[{V6}10]/"):
            before = len(RIG.records())
            self.assertIsInstance(RIG.curl(url, "-k"), int, url)
            record, = RIG.new_records(before, 1)
            self.assertEqual((record["outgate.flag"], record["outgate.door"]), ("NR", "transparent"), url)
            self.assertNotIn("network.peer.address", record)
        got = RIG.network.run("curl", "-sS", "--noproxy", "*", f"http://{V4}.10/", uid=APP).stdout
        self.assertIn('"code":"denied"', got.replace(" ", ""))
        # Another user is no way out, root neither.
        self.assertIsInstance(RIG.curl("https://unnamed.provider.test/", "-k", uid=None), int)

    def test_the_users_of_the_rules(self):
        self.set_up()
        got = RIG.curl("https://unnamed.provider.test/", uid=PROXY, ca=RIG.folder / "origin.pem")
        self.assertEqual(got["through_outgate"], False, "outgate's own user passes")

    def test_who_dials_the_listener_is_refused(self):
        self.set_up()
        for address in ("127.0.0.1", "[::1]"):
            before = len(RIG.records())
            # An empty reply, or a connection that was cut.
            self.assertIn(RIG.curl(f"http://{address}:3129/", "-H", "host: api.provider.test"), (52, 56))
            record, = RIG.new_records(before, 1)
            self.assertEqual(record["outgate.flag"], "NR")
            self.assertIn("redirected", record["outgate.error.detail"])

    def test_rules_that_forget_outgate_make_no_endless_loop(self):
        self.set_up(uid=4242)
        # Until the connections to the provider that were made before have been closed.
        until("no old connection", lambda: isinstance(RIG.curl("https://api.provider.test/", "-4", "-f"), int))
        before = len(RIG.records())
        self.assertIsInstance(RIG.curl("https://blind.provider.test/", "-4", ca=RIG.folder / "origin.pem"), int)
        self.assertIsInstance(RIG.curl("https://api.provider.test/", "-4", "-f"), int)
        until("the loop's record", lambda: any(r.get("outgate.flag") == "LD" for r in RIG.records()[before:]))
        self.assertLess(len(RIG.records()) - before, 20)

    def test_quic_is_refused_and_other_datagrams_are_left_alone(self):
        self.set_up()
        for host in (f"{V4}.10", f"{V6}10"):
            # At once: the kernel tells the one who sends, or by ICMP.
            self.assertIn(RIG.datagram(443, host), ("ConnectionRefusedError", "PermissionError"), host)
            self.assertEqual(RIG.datagram(5300, host), "hello")
        self.assertEqual(RIG.stream(53), "hello", "DNS over TCP")

    def test_what_is_excluded_and_what_is_not_named_goes_directly(self):
        self.set_up("--exclude-cidr", f"{V4}.0/24")
        direct = RIG.curl("https://unnamed.provider.test/", "-4", ca=RIG.folder / "origin.pem")
        self.assertEqual(direct["through_outgate"], False)
        self.assertEqual(RIG.datagram(443), "hello")
        self.assertIsInstance(RIG.curl("https://unnamed.provider.test/", "-6", "-k"), int)
        self.set_up("--ports", "80")
        self.assertEqual(RIG.curl("https://unnamed.provider.test/", ca=RIG.folder / "origin.pem")["through_outgate"], False)
        self.assert_intercepted(RIG.curl("http://api.provider.test/"), "2")

    def test_setup_is_repeated_checked_and_taken_away(self):
        empty = self.listing()
        wanted = ("--uid", str(PROXY), "--exclude-cidr", "10.0.0.0/8,fd00::/8,192.0.2.1/32", "--ports", "443,80,8000-8999")
        self.assertEqual(self.redirect("check", *wanted).returncode, 5)
        self.assertEqual(self.redirect("setup", *wanted).returncode, 0)
        once = self.listing()
        self.assertEqual(self.redirect("setup", *wanted).returncode, 0)
        self.assertEqual(self.listing(), once, "twice is once")
        done = self.redirect("check", *wanted)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        other = self.redirect("check", "--uid", "4242")
        self.assertEqual(other.returncode, 5)
        self.assertIn("missing: ", other.stderr)
        self.assertIn("4242", other.stderr)
        self.spoil()
        self.assertEqual(self.redirect("check", *wanted).returncode, 5)
        self.assertEqual(self.redirect("setup", *wanted).returncode, 0)
        self.assertEqual(self.redirect("remove").returncode, 0)
        self.assertEqual(self.strip(self.listing()), self.strip(empty), "nothing is left")
        self.assertEqual(self.redirect("remove").returncode, 0, "twice is no mistake")
        self.assertEqual(self.redirect("check", *wanted).returncode, 5)

    def test_one_backend_takes_the_place_of_the_other(self):
        tool("nft")
        tool("iptables")
        other = {"nft": "iptables", "iptables": "nft"}[self.BACKEND]
        self.assertEqual(RIG.redirect("setup", "--backend", other, "--uid", "4242").returncode, 0)
        self.assertEqual(self.redirect("check", "--uid", str(PROXY)).returncode, 5)
        # Rules of another user would catch outgate's own connections.
        self.set_up()
        self.assertEqual(RIG.redirect("check", "--backend", other, "--uid", "4242").returncode, 5)
        self.assert_intercepted(RIG.curl("http://api.provider.test/"), "2")
        # What stands beside ours is told.
        by_hand = {"nft": "nft add table inet outgate", "iptables": "iptables -t nat -N OUTGATE_CONNECTIONS"}[other].split()
        self.assertEqual(RIG.network.run(*by_hand).returncode, 0)
        done = self.redirect("check", "--uid", str(PROXY))
        self.assertEqual(done.returncode, 5)
        self.assertIn("is there as well", done.stderr)

    def test_what_else_stands_in_the_table_is_told(self):
        wanted = ("--uid", str(PROXY))
        for more, told in (("add chain inet outgate early { type nat hook output priority -150; policy accept; }", "not ours: chain early"),
                           ("add set inet outgate hosts { type ipv4_addr; elements = { 192.0.2.1, 192.0.2.2, 192.0.2.3 }; }", "not ours: set hosts"),
                           ("add table inet outgate { flags dormant; }", "not ours: flags dormant")):
            with self.subTest(told):
                self.set_up()
                self.assertEqual(self.redirect("check", *wanted).returncode, 0)
                added = RIG.network.run("nft", more)
                self.assertEqual(added.returncode, 0, added.stderr)
                done = self.redirect("check", *wanted)
                self.assertEqual(done.returncode, 5)
                self.assertIn(told, done.stderr)

    def strip(self, listing):
        return listing

    def spoil(self):
        RIG.network.run("nft", "flush", "chain", "inet", "outgate", "connections")

    def test_wrong_arguments(self):
        for wrong in (("--uid", "0"), (), ("--uid", "5", "--port", "0"), ("--uid", "5", "--ports", "9-8"), ("--uid", "5", "--ports", "53"),
                      ("--uid", "5", "--exclude-cidr", "10.0.0.0/8,::/0"), ("--uid", "5", "--exclude-cidr", "0.0.0.0/0"), ("--uid", "5", "--exclude-cidr", "10.0.0.1/8")):
            self.assertEqual(self.redirect("setup", *wrong).returncode, 2, wrong)

    def test_without_rights_it_says_so(self):
        done = RIG.network.run(RIG.program, "redirect", "setup", "--backend", self.BACKEND, "--uid", str(PROXY), uid=APP)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr.lower(), "permi|root")


class WithoutIpv6(unittest.TestCase):
    def test_the_listener_that_nothing_can_reach_is_left_out(self):
        name = f"og-four-{os.getpid()}"
        run = lambda *a: subprocess.run(["ip", *a], check=True, capture_output=True)
        run("netns", "add", name)
        self.addCleanup(run, "netns", "del", name)
        run("netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        run("-n", name, "link", "set", "lo", "up")
        with tempfile.TemporaryDirectory() as folder, open(f"{folder}/log", "wb") as log:
            Path(folder, "proxy.yaml").write_text(POLICY.replace("FOLDER", folder).replace(f"tls: {{ ca: {folder}/origin.pem }}", ""))
            Path(folder, "secret").write_text(SECRET)
            process = subprocess.Popen(RIG.network.command(name, RIG.program, "run", "--config", f"{folder}/proxy.yaml"), stdout=log, stderr=log)
            try:
                probe = RIG.network.command(name, RIG.program, "probe", "--path", "/readyz")
                until("outgate", lambda: subprocess.run(probe, capture_output=True).returncode == 0)
                self.assertIn("this system has no IPv6", Path(folder, "log").read_text())
                for backend, program in (("nft", "nft"), ("iptables", "iptables")):
                    if shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
                        done = subprocess.run(RIG.network.command(name, RIG.program, "redirect", "setup", "--backend", backend, "--uid", "7"),
                                              capture_output=True, text=True)
                        self.assertEqual(done.returncode, 0, done.stderr)
            finally:
                process.terminate()
                process.wait(20)


class Iptables(Nftables):
    BACKEND, PROGRAM = "iptables", "iptables"
    # It has no table of its own.
    test_what_else_stands_in_the_table_is_told = None

    def listing(self):
        return "".join(RIG.network.run(program, "-t", table, "-S").stdout
                       for program in ("iptables", "ip6tables") for table in ("nat", "filter"))

    def spoil(self):
        RIG.network.run("iptables", "-t", "nat", "-I", "OUTPUT", "1", "-j", "ACCEPT")
        self.addCleanup(RIG.network.run, "iptables", "-t", "nat", "-D", "OUTPUT", "-j", "ACCEPT")

    def strip(self, listing):
        return listing.replace("-A OUTPUT -j ACCEPT\n", "")


if __name__ == "__main__":
    unittest.main()
