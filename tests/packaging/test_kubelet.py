"""Pods of the charts end to end, as containers: start order, a user's init container, Jobs to their end, a killed sidecar, what the app can reach.

See kubelet.py for what is real here and what is not. test_pod does without podman, and so says less; it runs for any user.
"""

import json
import re
import shutil
import tempfile
import time
import unittest
from pathlib import Path

import yaml

from engine import AppChart, objects, pod_spec, render, render_app
from image import shared, shared_redirect
from kubelet import Kubelet, app_image, shell
from pod import until
from test_pod import HOST, KEY, Origin, ca_of, policy
from webhook import command_line, injector_objects, template_of

CURL = "curl -sS --fail --max-time 20"
#: An app that serves until it is told to end, and calls out once more then.
SERVE = shell(f"cat /var/run/outgate/ca-bundle.pem > /tmp/read-at-the-start.pem; "
              f"trap '{CURL} --resolve {HOST}:443:203.0.113.5 https://{HOST}/v1/farewell; exit $?' TERM; : > /tmp/serving; while :; do sleep 0.1; done")
MIGRATE = {"name": "migrate", "image": "registry.example/shop:1.0.0", "command": shell(
    f"set -e; test -n \"$HTTPS_PROXY\"; test \"$SSL_CERT_FILE\" = /var/run/outgate/ca-bundle.pem; {CURL} -H 'Authorization: Bearer of-the-app' "
    f"https://{HOST}/v1/migrate; {CURL} http://127.0.0.1:3128/stripe/v1/local"),
    "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
                        "seccompProfile": {"type": "RuntimeDefault"}}}


def with_migrate(values):
    """The example's chart with an init container of the user's own behind the library's, as docs/packaging.md says."""
    with AppChart() as path:
        template = path / "templates/deployment.yaml"
        line = '        {{- include "outgate.initContainers" . | nindent 8 }}\n'
        ours = yaml.safe_dump([MIGRATE], sort_keys=False)
        more = "".join(f"        {one}\n" for one in ours.splitlines())
        more += ("          env:\n            {{- include \"outgate.env\" . | nindent 12 }}\n"
                 "          volumeMounts:\n            {{- include \"outgate.volumeMounts\" . | nindent 12 }}\n")
        text = template.read_text()
        assert line in text
        template.write_text(text.replace(line, line + more))
        return render(path, {"outgate": values}, name="shop")


class Pods(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.image = shared()
        app_image(cls.image)

    def kubelet(self, spec, data=None, serve=True):
        pod = Kubelet(self.image, spec, {
            "outgate-policy": {"proxy.yaml": "version: 1\n"}, "shop-egress": {"proxy.yaml": "version: 1\n"},
            "shop-provider-keys": {"stripe": KEY + "\n"}, "company-roots": {"company.pem": "\n"}} | (data or {}))
        self.addCleanup(pod.close)
        folder = Path(tempfile.mkdtemp(prefix="origin-"))
        self.addCleanup(shutil.rmtree, folder)
        # A provider at loopback of the pod's own network.
        pod.origin = pod.within(lambda: Origin(folder))
        self.addCleanup(pod.origin.server.server_close)
        self.addCleanup(pod.origin.server.shutdown)
        pod.swap("outgate-extra-ca", {"company.pem": pod.origin.ca})
        self.apply(pod)
        if serve:
            pod.instead["shop"] = SERVE
        return pod

    def apply(self, pod, more=""):
        pod.swap("outgate-policy", {"proxy.yaml": policy(3128, pod.origin.port, more)})

    def given(self, **values):
        return {"ca": {"extraConfigMap": "company-roots"}, "credentials": {"secret": "shop-provider-keys"}} | values

    def deployment(self, **values):
        return pod_spec(objects(render_app({"outgate": self.given(**values)}))["Deployment/shop"])

    def job(self, **values):
        return pod_spec(objects(render_app({"outgate": self.given(**values)}))["Job/shop-settle"])

    def assert_seen(self, pod, *paths):
        """All that came since the last look, with the credential."""
        self.assertEqual(pod.origin.seen, [{"path": path, "authorization": f"Bearer {KEY}"} for path in paths])
        pod.origin.seen.clear()

    def assert_calls(self, pod, path="/v1/call", arguments=""):
        got = pod.execute("shop", f"until test -e /tmp/serving; do sleep 0.05; done; {CURL} {arguments} https://{HOST}{path}", check=False)
        self.assertEqual((got.returncode, got.stdout), (0, '{"ok": true}'), got.stderr + pod.logs("outgate"))

    def test_a_users_init_container_behind_the_sidecar(self):
        """By the library, and by `outgate inject`: it finds the variables, the bundle, and outgate serving."""
        bare = pod_spec(objects(render_app({"settle": False, "outgate": self.given()}))["Deployment/shop"])
        shop = {key: value for key, value in bare["containers"][-1].items() if key not in ("env", "volumeMounts")}
        annotations = {"outgate.dev/credentials-secret": "shop-provider-keys"}
        written = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "shop", "annotations": annotations},
                   "spec": {"initContainers": [MIGRATE], "containers": [shop]}}
        by_library = pod_spec(objects(with_migrate(self.given()))["Deployment/shop"])
        template = template_of(injector_objects({"outgate": {"ca": {"extraConfigMap": "company-roots"}}}))
        by_command = command_line([written], template)[0][0]["spec"]
        for way, spec in (("library", by_library), ("inject", by_command)):
            with self.subTest(way=way):
                self.assertEqual([c["name"] for c in spec["initContainers"]], ["outgate", "migrate"])
                pod = self.kubelet(spec)
                pod.start()
                self.assertEqual(pod.events, ["started outgate", "probed outgate", "started migrate", "ended migrate", "started shop"])
                self.assert_seen(pod, "/v1/migrate", "/v1/local")
                self.assert_calls(pod)

    def test_a_deployment_is_deleted(self):
        """The app is told to end and calls out until its last act; then the sidecar is, and ends well."""
        pod = self.kubelet(self.deployment())
        begun = time.monotonic()
        pod.start()
        print(f"\n# a pod's containers are up after {time.monotonic() - begun:.1f} s, podman included")
        _, status = pod.process("outgate")
        resident, own = (int(status[key][0]) / 1024 for key in ("VmRSS", "RssAnon"))
        print(f"# the sidecar in the pod: resident {resident:.1f} MiB, idle; of it {own:.1f} MiB that is not the program's file")
        self.assertEqual((status["Uid"][1], status["Gid"][1], int(status["CapBnd"][0], 16), status["NoNewPrivs"], status["Seccomp"]),
                         ("65532", "65532", 0, ["1"], ["2"]))
        self.assert_calls(pod)
        self.assertEqual(pod.delete(), {"shop": 0, "outgate": 0})
        self.assertEqual(pod.events[-4:], ["told shop", "ended shop", "told outgate", "ended outgate"])
        self.assert_seen(pod, "/v1/call", "/v1/farewell")

    def test_a_native_job_ends(self):
        """Its own container ends; nobody has told the sidecar anything until then, and it ends with 0 when it is."""
        for code in (0, 3):
            spec = self.job()
            self.assertEqual(spec["containers"][0]["command"], ["/app/settle"])
            spec["containers"][0]["env"].append({"name": "SETTLE_CODE", "value": str(code)})
            pod = self.kubelet(spec)
            pod.start()
            self.assertEqual(pod.ended("settle"), code, pod.logs("settle"))
            self.assertTrue(pod.running("outgate"), "it serves as long as any container may call")
            self.assertEqual(pod.complete(), {"settle": code, "outgate": 0}, pod.logs("outgate"))
            self.assertEqual([e for e in pod.events if e.startswith("told")], ["told outgate"])
            self.assert_seen(pod, "/v1/settle")

    def test_a_classic_job_ends_by_its_rendered_command(self):
        """Nobody tells anybody to end: the last act of the command ends the sidecar, also where the Job fails, whose exit code stays."""
        for code in (0, 3):
            spec = self.job(native=False)
            main = spec["containers"][-1]
            self.assertEqual((main["name"], main["command"][:2]), ("settle", ["/bin/sh", "-c"]))
            main["env"].append({"name": "SETTLE_CODE", "value": str(code)})
            pod = self.kubelet(spec)
            pod.start()
            self.assertEqual(pod.events[:3], ["started outgate", "hooked outgate", "started settle"])
            self.assertEqual(pod.complete(), {"settle": code, "outgate": 0}, pod.logs("settle") + pod.logs("outgate"))
            self.assertFalse([e for e in pod.events if e.startswith("told")])
            self.assert_seen(pod, "/v1/settle")

    def test_a_killed_sidecar_keeps_its_ca(self):
        """kill -9, a container made anew by the kubelet with the same volumes; an app that read the bundle at its start goes on."""
        pod = self.kubelet(self.deployment())
        pod.start()
        before = ca_of(pod.volume("outgate-public") / "ca-bundle.pem")
        pod.image.podman("kill", "-s", "KILL", pod.containers["outgate"])
        self.assertEqual(pod.ended("outgate"), 137)
        self.assertNotEqual(pod.execute("shop", f"{CURL} https://{HOST}/v1/nobody", check=False).returncode, 0)
        pod.began(pod.sidecar)
        self.assertEqual(ca_of(pod.volume("outgate-public") / "ca-bundle.pem"), before)
        self.assert_calls(pod, arguments="--cacert /tmp/read-at-the-start.pem")
        self.assert_seen(pod, "/v1/call")

    def test_a_changed_configmap_is_seen(self):
        pod = self.kubelet(self.deployment())
        pod.start()
        self.assert_calls(pod, "/v1/refunds")
        self.apply(pod, "    routes:\n      - match: { path: /v1/refunds }\n        deny: no refunds\n")
        asks = f"curl -sS -o /dev/null -w '%{{http_code}}' --max-time 5 https://{HOST}/v1/refunds"
        seconds = until("the new policy", lambda: pod.execute("shop", asks, check=False).stdout == "403", 5)
        print(f"\n# a swapped ConfigMap took effect after {seconds:.1f} s, podman included")

    def test_a_redirected_pod(self):
        """The rendered init container makes the rules with the image of Dockerfile.redirect; an app that knows no variables ends at outgate, and
        outgate's own connections do not."""
        shared_redirect()
        values = self.given(uid=64532, app={"mode": "redirect", "users": [1000], "proxyVariables": False})
        pod = self.kubelet(self.deployment(**values))
        self.assertEqual(pod.spec["initContainers"][0]["image"], "outgate-redirect:0.1.0")
        pod.start()
        self.assertEqual(pod.events, ["started outgate-redirect", "ended outgate-redirect", "started outgate", "probed outgate", "started shop"])
        self.assertNotIn("HTTPS_PROXY", pod.execute("shop", "env").stdout)
        self.assert_calls(pod, arguments=f"--resolve {HOST}:443:203.0.113.5")
        self.assert_seen(pod, "/v1/call")
        other = pod.execute("shop", "curl -sS -k --max-time 5 --resolve elsewhere.example:443:203.0.113.5 https://elsewhere.example/", check=False)
        self.assertNotEqual(other.returncode, 0)
        self.assertEqual(pod.delete(), {"shop": 0, "outgate": 0})

    # Each line that it prints is something that it could read or do and must not. A pattern is written so that it does not find itself.
    THIEF = r"""
for file in /var/lib/outgate/ca/ca.key /etc/outgate/credentials/stripe /var/run/secrets/outgate/token /etc/outgate/policy/proxy.yaml; do
  cat "$file" 2>/dev/null && echo "READ $file"
done
find / \( -path /usr -o -path /proc -o -path /sys \) -prune -o -type f -print 2>/dev/null | while read -r file; do
  grep -q -e 'sk_canary_from_the[_]mounted_secret' -e 'PRIVATE[ ]KEY' -e 'token for[ ]vault' "$file" 2>/dev/null && echo "FOUND in $file"
done
for process in /proc/[0-9]*; do
  tr '\0' ' ' < "$process/cmdline" 2>/dev/null | grep -q 'run --[c]onfig' || continue
  echo "SEES the sidecar"
  for file in environ maps mem auxv stack syscall io; do
    { head -c 1 "$process/$file" | grep -q .; } 2>/dev/null && echo "READ $file of the sidecar"
  done
  for link in root cwd exe fd/0; do readlink "$process/$link" >/dev/null 2>&1 && echo "FOLLOWED $link of the sidecar"; done
  ls "$process/root/etc/outgate/credentials" "$process/root/var/lib/outgate/ca" "$process/fd" >/dev/null 2>&1 && echo "WALKED into the sidecar"
  ls "$process/fd" >/dev/null 2>&1 && echo "LISTED fd of the sidecar"
  kill -0 "${process#/proc/}" 2>/dev/null && echo "MAY SIGNAL the sidecar"
done
(: >> /var/run/outgate/ca-bundle.pem) 2>/dev/null && echo "WROTE the bundle"
(: > /var/run/outgate/more.pem) 2>/dev/null && echo "WROTE beside the bundle"
true
"""

    def test_a_thief_in_the_app_finds_nothing(self):
        """The app's container as it is: processes of its own, so it does not see the sidecar's at all. With `shareProcessNamespace` (of which the
        injector warns) it sees the process, and reads nothing of it: another user's, without capabilities, and not dumpable."""
        for shares, wanted in ((False, ""), (True, "SEES the sidecar\n")):
            spec = self.deployment(credentials={"secret": "shop-provider-keys", "token": {"audience": "vault"}})
            if shares:
                spec["shareProcessNamespace"] = True
            pod = self.kubelet(spec)
            pod.start()
            got = pod.execute("shop", self.THIEF)
            self.assertEqual(got.stdout, wanted, got.stderr)
            for port in (3128, 9901, 9902):
                for path in ("/", "/status", "/metrics", "/stripe/../../etc/outgate/credentials/stripe"):
                    got = pod.execute("shop", f"curl -sS --noproxy '*' --path-as-is --max-time 10 http://127.0.0.1:{port}{path}", check=False)
                    for secret in (KEY, "token for vault", "PRIVATE KEY"):
                        self.assertNotIn(secret, got.stdout + got.stderr, f"{port}{path}")
            self.assert_calls(pod)
            self.assertEqual(pod.process("outgate")[1]["CapEff"], ["0000000000000000"])
        # The same search with the sidecar's user and mounts, among its processes, finds all of it: it can fail. Only what the process has
        # closed to its own user is not found.
        spec = json.loads(json.dumps(pod.sidecar)) | {"name": "twin", "image": "registry.example/shop:1.0.0"}
        for key in ("args", "startupProbe", "restartPolicy"):
            spec.pop(key, None)
        pod.instead["twin"] = shell("while :; do sleep 0.1; done")
        pod.run(spec)
        got = pod.execute("twin", self.THIEF).stdout
        for line in ("READ /var/lib/outgate/ca/ca.key", "READ /etc/outgate/credentials/stripe", "READ /var/run/secrets/outgate/token",
                     "FOUND in /var/lib/outgate/ca/ca.key", "SEES the sidecar", "MAY SIGNAL the sidecar", "WROTE the bundle"):
            self.assertIn(line, got)
        closed = re.findall(r"(?:READ|FOLLOWED|LISTED) (\S+) of the sidecar", got)
        print(f"\n# of the sidecar's process its own user reads: {', '.join(closed) or 'nothing'}")
        self.assertFalse({"environ", "mem", "maps", "root", "fd"} & set(closed), got)


if __name__ == "__main__":
    unittest.main()
