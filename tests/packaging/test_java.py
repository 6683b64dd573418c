"""Java: the truststore that outgate writes, and the JDK's own clients with nothing but the variables that `outgate env` prints."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from engine import OUTGATE, missing
from pod import free_port, until
from test_pod import HOST, KEY, Origin

HERE = Path(__file__).parent


class Java(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        for name in ("java", "keytool"):
            if not shutil.which(name):
                missing(f"{name} is not here: Java is not tested")
        cls.temporary = tempfile.TemporaryDirectory()
        folder = cls.folder = Path(cls.temporary.name)
        origin = cls.origin = Origin(folder)
        (folder / "secret").write_text(KEY)
        admin = free_port()
        (folder / "proxy.yaml").write_text(f"""version: 1
listeners: [{{ address: "127.0.0.1:{free_port()}" }}]
admin: {{ address: "127.0.0.1:{admin}" }}
interception: {{ ca: {{ directory: ca }}, bundle: bundle.pem, truststore: truststore.p12 }}
providers:
  stripe:
    hosts: [{HOST}]
    upstream: {{ connect_to: "127.0.0.1:{origin.port}", tls: {{ ca: ca.pem }} }}
    credential: {{ bearer: "file:secret" }}
""")
        cls.log = open(folder / "outgate.log", "wb")
        cls.process = subprocess.Popen([OUTGATE, "run", "--config", folder / "proxy.yaml"], stdout=cls.log, stderr=cls.log)
        probe = [OUTGATE, "probe", "--address", f"127.0.0.1:{admin}", "--path", "/readyz"]
        until("outgate", lambda: subprocess.run(probe, capture_output=True).returncode == 0)

    @classmethod
    def tearDownClass(cls):
        if hasattr(cls, "process"):
            cls.process.terminate()
            cls.process.wait(20)
            cls.log.close()
            cls.origin.server.shutdown()
            cls.origin.server.server_close()
        if hasattr(cls, "temporary"):
            cls.temporary.cleanup()

    def env(self, *arguments):
        return subprocess.run([OUTGATE, "env", "--config", self.folder / "proxy.yaml", *arguments], capture_output=True, text=True)

    def run_java(self, url, **more):
        variables = json.loads(self.env("--format", "json", "--runtime", "java").stdout)
        environment = {"PATH": os.environ["PATH"], "HOME": self.temporary.name} | variables | more
        return subprocess.run(["java", HERE / "Client.java", url], env=environment, capture_output=True, text=True, timeout=120)

    def test_the_clients_of_the_jdk(self):
        done = self.run_java(f"https://{HOST}/v1/balance")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.splitlines(), ['HttpsURLConnection 200 {"ok": true}', 'HttpClient 200 {"ok": true}'])
        self.assertEqual(self.origin.seen[-2:], [{"path": "/v1/balance", "authorization": f"Bearer {KEY}"}] * 2)

    def test_it_is_the_store_that_makes_the_trust(self):
        done = self.run_java(f"https://{HOST}/v1/balance", JAVA_TOOL_OPTIONS=" ".join(
            option for option in json.loads(self.env("--format", "json", "--runtime", "java").stdout)["JAVA_TOOL_OPTIONS"].split()
            if "trustStore" not in option))
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("PKIX path building failed", done.stderr)

    def test_the_store_holds_what_the_bundle_holds(self):
        store = self.folder / "truststore.p12"
        done = subprocess.run(["keytool", "-list", "-keystore", store, "-storepass", "changeit"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout)
        entries = re.findall(r"^(\S+), .*trustedCertEntry,", done.stdout, re.M)
        self.assertIn("outgate", entries)
        certificates = (self.folder / "bundle.pem").read_text().count("BEGIN CERTIFICATE")
        self.assertEqual(len(entries), certificates, "Java takes each of them for trusted")
        self.assertGreater(certificates, 50)
        self.assertEqual(store.stat().st_mode & 0o777, 0o644)
        wrong = subprocess.run(["keytool", "-list", "-keystore", store, "-storepass", "another"], capture_output=True, text=True)
        self.assertNotEqual(wrong.returncode, 0, "the MAC is looked at")

    def test_openssl_reads_it_too(self):
        done = subprocess.run(["openssl", "pkcs12", "-in", self.folder / "truststore.p12", "-passin", "pass:changeit", "-nokeys"],
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("friendlyName: outgate", done.stdout)

    def test_what_cannot_be_written_is_said(self):
        docker = self.env("--format", "docker", "--runtime", "java")
        self.assertEqual((docker.returncode, "--env-file" in docker.stderr), (1, True))
        (self.folder / "bare.yaml").write_text("version: 1\n")
        bare = subprocess.run([OUTGATE, "env", "--config", self.folder / "bare.yaml", "--runtime", "java"], capture_output=True, text=True)
        self.assertEqual((bare.returncode, "interception.truststore" in bare.stderr), (1, True), bare)


if __name__ == "__main__":
    unittest.main()
