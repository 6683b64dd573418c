"""Pods of the charts, run: start order, credentials, reload, crash, end. See pod.py for what is real here and what is not."""

import http.server
import json
import signal
import ssl
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.request
from pathlib import Path

from engine import missing, objects, pod_spec, render_app
from pod import ROOT_USER, Pod, free_port, until

HOST = "api.stripe.example"
KEY = "sk_canary_from_the_mounted_secret"


class Origin:
    """A provider with TLS of a company's own CA; notes what it is sent."""

    def __init__(self, folder, host=HOST, address="127.0.0.1"):
        self.seen = []
        run = lambda *a: subprocess.run(["openssl", *a], cwd=folder, check=True, capture_output=True)
        run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "ca.key", "-out", "ca.pem",
            "-subj", "/CN=company root", "-days", "2", "-addext", "keyUsage=critical,keyCertSign")
        run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "leaf.key", "-out", "leaf.csr",
            "-subj", f"/CN={host}")
        (folder / "ext").write_text(f"subjectAltName=DNS:{host}\nextendedKeyUsage=serverAuth\n")
        run("x509", "-req", "-in", "leaf.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-out", "leaf.pem",
            "-extfile", "ext")
        self.ca = (folder / "ca.pem").read_text()
        seen = self.seen

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                seen.append({"path": self.path, "authorization": self.headers.get("authorization")})
                body = b'{"ok": true}'
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer((address, 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "leaf.pem", folder / "leaf.key")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def policy(port, origin, more=""):
    return f"""version: 1
listeners: [{{ address: "127.0.0.1:{port}" }}]
providers:
  stripe:
    hosts: [{HOST}]
    upstream: {{ connect_to: "127.0.0.1:{origin}" }}
    credential: {{ bearer: "file:/etc/outgate/credentials/stripe" }}
{more}"""


def ca_of(bundle):
    """outgate's own certificate: the last of the bundle."""
    return bundle.read_text().rsplit("-----BEGIN CERTIFICATE-----", 1)[1]


class Pods(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.origin = Origin(Path(cls.folder.name))

    @classmethod
    def tearDownClass(cls):
        cls.origin.server.shutdown()
        cls.origin.server.server_close()
        cls.folder.cleanup()

    def pod(self, values=None, job=False, data=None):
        """A pod of the example's chart, with ports that are free here."""
        self.ports = {"proxy": free_port(), "admin": free_port(), "health": free_port()}
        given = {"ports": self.ports, "ca": {"extraConfigMap": "company-roots"}}
        for key, value in (values or {}).items():
            given[key] = given.get(key, {}) | value if isinstance(value, dict) else value
        found = objects(render_app({"outgate": given}))
        spec = pod_spec(found["Job/shop-settle" if job else "Deployment/shop"])
        pod = Pod(spec, {
            "shop-egress": {"proxy.yaml": "version: 1\n"},
            "shop-provider-keys": {"stripe": KEY + "\n"},
            "company-roots": {"company.pem": self.origin.ca},
        } | (data or {}))
        self.addCleanup(pod.close)
        self.apply(pod)
        return pod

    def apply(self, pod, more=""):
        """The policy, as the ConfigMap has it. Its paths are those of the pod, which lie elsewhere here."""
        pod.mount(pod.sidecar)
        text = pod.rewritten(pod.sidecar, policy(self.ports["proxy"], self.origin.port, more))
        pod.swap("outgate-policy", {"proxy.yaml": text})

    def metric(self, name):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.ports['health']}/metrics") as got:
            for line in got.read().decode().splitlines():
                if line.startswith(name + " "):
                    return float(line.split()[-1])
        return None

    CURL = ["curl", "-sS", "--fail", "--max-time", "20"]

    def test_the_app_calls_with_a_key_that_it_has_not(self):
        pod = self.pod()
        seconds = pod.start()
        print(f"\n# ready after {seconds * 1000:.0f} ms")
        # At its first instruction the app finds the bundle: whole, and readable for its own user.
        text = pod.in_app("cat", "/var/run/outgate/ca-bundle.pem")
        self.assertGreater(text.count("BEGIN CERTIFICATE"), 50, "the system's roots are in it")
        self.assertIn(self.origin.ca.split("\n")[2], text, "the company's too")
        # By variables: curl and Python. By the local endpoint: no variables, no CA.
        before = len(self.origin.seen)
        self.assertEqual(json.loads(pod.in_app(*self.CURL, "-H", "Authorization: Bearer of-the-app", f"https://{HOST}/v1/a")), {"ok": True})
        script = f"import urllib.request as u; print(u.urlopen('https://{HOST}/v1/b').read().decode())"
        self.assertIn("true", pod.in_app("python3", "-c", script))
        pod.in_app(*self.CURL, f"http://127.0.0.1:{self.ports['proxy']}/stripe/v1/c")
        self.assertEqual([(s["path"], s["authorization"]) for s in self.origin.seen[before:]],
                         [(f"/v1/{x}", f"Bearer {KEY}") for x in "abc"])
        self.assertNotEqual(pod.in_app(*self.CURL, "https://elsewhere.example/", check=False), 0)
        self.assertNotIn(KEY, pod.log())
        # Alive on the pod's address, and nothing but health and metrics there.
        self.assertEqual((pod.probe("startupProbe"), pod.probe("livenessProbe")), (200, 200))
        with self.assertRaises(urllib.error.HTTPError) as refused:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://127.0.0.1:{self.ports['health']}/status")
        self.assertEqual(refused.exception.code, 404)
        self.assertEqual(pod.terminate(), 0)

    def test_the_app_reads_no_key(self):
        pod = self.pod({"credentials": {"secret": "shop-provider-keys", "token": {"audience": "vault"}}})
        pod.start()
        mounts = {m["name"] for m in pod.app()["volumeMounts"]}
        self.assertEqual(mounts, {"outgate-public"})
        key = pod.volume("outgate-private") / "ca" / "ca.key"
        self.assertEqual(oct(key.stat().st_mode & 0o777), "0o600")
        self.assertFalse([p for p in pod.volume("outgate-public").rglob("*") if "key" in p.name])
        if ROOT_USER:
            # Even where a mistake lets it see the folder, another user reads nothing.
            self.assertEqual(key.stat().st_uid, 65532)
            self.assertNotEqual(pod.in_app("cat", str(key), check=False), 0)
            self.assertEqual(pod.in_app("cat", str(pod.volume("outgate-public") / "ca-bundle.pem"), check=False), 0)

    def test_a_mount_over_the_bundle_blinds_its_own_app_alone(self):
        """One file of a volume of the app's own (`subPath`) where the bundle is. The injector refuses such a pod; with the library nobody is asked. It
        gains nothing by that: its own clients trust nobody, and the bundle of the others is what it was."""
        if not ROOT_USER:
            missing("this wants root: containers with mounts of their own are not tested")
        pod = self.pod()
        pod.start()
        bundle = (pod.volume("outgate-public") / "ca-bundle.pem").read_text()
        pod.volume("mine").mkdir()
        (pod.volume("mine") / "pem").write_text(self.origin.ca)
        app = json.loads(json.dumps(pod.app()))
        app["volumeMounts"].append({"name": "mine", "mountPath": "/var/run/outgate/ca-bundle.pem", "subPath": "pem"})
        before = len(self.origin.seen)
        got = pod.inside(app, f"cat /var/run/outgate/ca-bundle.pem; curl -sS --fail --max-time 20 https://{HOST}/v1/blind")
        self.assertEqual(got.returncode, 60, f"curl does not trust the sidecar's leaf: {got.stdout}{got.stderr}")
        self.assertEqual(got.stdout, self.origin.ca)
        self.assertEqual(len(self.origin.seen), before, "no request left")
        self.assertEqual((pod.volume("outgate-public") / "ca-bundle.pem").read_text(), bundle)
        self.assertEqual(pod.inside(pod.app(), f"curl -sS --fail --max-time 20 https://{HOST}/v1/seeing").returncode, 0)
        self.assertEqual(pod.terminate(), 0)

    def test_a_changed_configmap_takes_effect_while_it_runs(self):
        pod = self.pod()
        pod.start()
        url = f"http://127.0.0.1:{self.ports['proxy']}/stripe/v1/refunds"
        pod.in_app(*self.CURL, url)
        denied = "    routes:\n      - match: { path: /v1/refunds }\n        deny: no refunds\n"
        self.apply(pod, denied)
        seconds = until("the new policy", lambda: pod.in_app(*self.CURL, url, check=False) != 0, 5)
        print(f"\n# a swapped ConfigMap took effect after {seconds:.1f} s")
        # A mistake never takes effect, and is counted.
        pod.swap("outgate-policy", {"proxy.yaml": "version: 1\nproviders: [\n"})
        until("the refusal", lambda: self.metric('outgate_policy_reloads_total{result="refused"}') == 1.0, 10)
        self.assertNotEqual(pod.in_app(*self.CURL, url, check=False), 0, "the old policy goes on")
        pod.in_app(*self.CURL, f"http://127.0.0.1:{self.ports['proxy']}/stripe/v1/ok")
        self.apply(pod)
        until("the good one", lambda: pod.in_app(*self.CURL, url, check=False) == 0, 10)
        self.assertIsNone(pod.process.poll())

    def test_a_killed_sidecar_keeps_its_ca(self):
        pod = self.pod()
        pod.start()
        bundle = pod.volume("outgate-public") / "ca-bundle.pem"
        before = ca_of(bundle)
        for _ in range(3):
            pod.process.send_signal(signal.SIGKILL)
            pod.process.wait()
            pod.start()
            self.assertEqual(ca_of(bundle), before)
            # An app that read the bundle long ago still trusts what it is shown.
            pod.in_app(*self.CURL, f"https://{HOST}/v1/again")
        another = self.pod()
        another.start()
        self.assertNotEqual(ca_of(another.volume("outgate-public") / "ca-bundle.pem"), before, "each pod has its own")

    def test_a_job_ends_in_classic_mode(self):
        pod = self.pod({"native": False}, job=True)
        pod.start()
        pod.in_app(*self.CURL, f"https://{HOST}/v1/settle")
        admin = f"http://127.0.0.1:{self.ports['admin']}"
        self.assertEqual(pod.in_app(*self.CURL, "-X", "POST", f"{admin}/quit").strip(), "draining")
        self.assertEqual(pod.process.wait(10), 0)

    def test_quit_is_off_in_native_mode(self):
        pod = self.pod(job=True)
        pod.start()
        url = f"http://127.0.0.1:{self.ports['admin']}/quit"
        self.assertNotEqual(pod.in_app(*self.CURL, "-X", "POST", url, check=False), 0)
        self.assertIsNone(pod.process.poll())

    def test_the_app_finds_its_way_out_in_classic_mode(self):
        pod = self.pod({"native": False, "classic": {"linger": "20s", "lingerIdle": "1500ms", "drain": "5s"}})
        pod.start()
        begun = time.monotonic()
        pod.process.send_signal(signal.SIGTERM)
        while time.monotonic() - begun < 3:
            pod.in_app(*self.CURL, f"https://{HOST}/v1/farewell")
        last = time.monotonic()
        self.assertEqual(pod.process.wait(15), 0)
        self.assertLess(time.monotonic() - last, 10, "it does not wait for the whole linger")

    def test_without_a_ca(self):
        pod = self.pod({"ca": {"mode": "none"}, "app": {"proxyVariables": False}})
        pod.start()
        self.assertFalse(pod.app().get("env") or pod.app().get("volumeMounts"))
        pod.in_app(*self.CURL, f"http://127.0.0.1:{self.ports['proxy']}/stripe/v1/local")
        self.assertEqual(pod.terminate(), 0)

    def test_a_ca_of_ones_own(self):
        secret, renewed = self.own_ca(), self.own_ca()
        pod = self.pod({"ca": {"mode": "existingSecret", "secret": "own-ca"}}, data={"own-ca": secret})
        if ROOT_USER:
            file = pod.volume("outgate-ca") / "tls.key"
            self.assertEqual((file.stat().st_uid, oct(file.stat().st_mode & 0o777)), (0, "0o440"), "as Kubernetes mounts a Secret")
        else:
            (pod.volume("outgate-ca") / "tls.key").resolve().chmod(0o400)
        pod.start()
        self.assertEqual(ca_of(pod.volume("outgate-public") / "ca-bundle.pem").split(), secret["tls.crt"].split("-----BEGIN CERTIFICATE-----")[1].split())
        pod.in_app(*self.CURL, f"https://{HOST}/v1/own")
        # Renewed with another key: the bundle has both, and an app that read the old one long ago goes on.
        bundle = pod.volume("outgate-public") / "ca-bundle.pem"
        long_ago = pod.folder / "long-ago.pem"
        long_ago.write_text(bundle.read_text())
        long_ago.chmod(0o644)
        pod.swap("outgate-ca", renewed, 0o440)
        body = renewed["tls.crt"].splitlines()[1]
        seconds = until("the new CA is in the bundle", lambda: body in bundle.read_text())
        print(f"\n# a renewed CA was in the bundle after {seconds:.1f} s")
        self.assertIn(secret["tls.crt"].splitlines()[1], bundle.read_text())
        pod.in_app(*self.CURL, "--cacert", str(long_ago), f"https://{HOST}/v1/long-ago")
        pod.in_app(*self.CURL, f"https://{HOST}/v1/since")
        self.assertEqual(pod.terminate(), 0)

    def own_ca(self):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", folder / "k",
                            "-out", folder / "c", "-subj", "/CN=brought along", "-days", "2", "-addext", "keyUsage=critical,keyCertSign",
                            "-addext", "basicConstraints=critical,CA:TRUE,pathlen:0"], check=True, capture_output=True)
            return {"tls.crt": (folder / "c").read_text(), "tls.key": (folder / "k").read_text()}


if __name__ == "__main__":
    unittest.main()
