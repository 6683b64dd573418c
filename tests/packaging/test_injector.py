"""The injector: one pod by all three ways, the webhook as the API server sees it, and its certificates."""

import base64
import contextlib
import copy
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

import kubernetes_validate
import yaml
from helm_python.chart import Chart
from helm_python.config import Config

import restricted
from engine import APP, CHART, KUBES, LIBRARY, OUTGATE, ROOT, objects, pod_spec, render, render_app, sidecar_of, values_of
from pod import until
from webhook import Injector, command_line, injector_objects, named, review, template_of

EMBEDDED = ROOT / "src" / "injector" / "default_template.yaml"
APP_VALUES = yaml.safe_load((APP / "values.yaml").read_text())["outgate"]
LIBRARY_APP = yaml.safe_load((LIBRARY / "values.yaml").read_text())["app"]
SECURE = {"runAsNonRoot": True, "runAsUser": 1000, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
          "seccompProfile": {"type": "RuntimeDefault"}}


def a_pod(annotations=None, **spec):
    return {"apiVersion": "v1", "kind": "Pod",
            "metadata": {"generateName": "shop-", "namespace": "shop", "labels": {"app": "shop", "outgate.dev/inject": "true"},
                         "annotations": annotations or {}},
            "spec": {"containers": [{"name": "shop", "image": "shop:1", "securityContext": SECURE}]} | spec}


#: Pods as people write them; the last is what the API server makes of one before it asks.
PODS = {
    "plain": a_pod(),
    "no annotations": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"outgate.dev/inject": "true"}},
                       "spec": {"containers": [{"name": "a", "image": "a", "securityContext": SECURE}]}},
    "job": a_pod({"outgate.dev/credentials-secret": "keys"}, restartPolicy="Never"),
    "classic": a_pod({"outgate.dev/native-sidecar": "false"}, initContainers=[{"name": "migrate", "image": "a", "securityContext": SECURE}]),
    "all": a_pod({"outgate.dev/policy": "mine", "outgate.dev/credentials-secret": "keys", "outgate.dev/no-proxy": ".corp.example",
                  "outgate.dev/log-level": "debug", "outgate.dev/cpu-request": "20m", "outgate.dev/memory-request": "48Mi",
                  "outgate.dev/memory-limit": "256Mi", "outgate.dev/exclude-containers": "log"},
                 initContainers=[{"name": "migrate", "image": "a", "securityContext": SECURE}],
                 containers=[{"name": "shop", "image": "shop", "securityContext": SECURE, "env": [{"name": "SSL_CERT_FILE", "value": "/mine"}]},
                             {"name": "log", "image": "log", "securityContext": SECURE}]),
    "mesh": a_pod(initContainers=[{"name": "istio-init", "image": "istio", "securityContext": SECURE}],
                  containers=[{"name": "shop", "image": "shop", "securityContext": SECURE}, {"name": "istio-proxy", "image": "istio", "securityContext": SECURE}]),
    "as it arrives": a_pod(
        volumes=[{"name": "kube-api-access-x", "projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}]}}],
        containers=[{"name": "shop", "image": "shop", "securityContext": SECURE, "terminationMessagePath": "/dev/termination-log",
                     "volumeMounts": [{"name": "kube-api-access-x", "readOnly": True, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]}],
        tolerations=[{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]),
}


def in_order(pod):
    """Without what differs by nature: where in a list a name stands, and what only an injection writes."""
    pod = copy.deepcopy(pod)
    metadata = pod.setdefault("metadata", {})
    metadata.get("labels", {}).pop("outgate.dev/inject", None)
    for key in ("outgate.dev/status", "kubectl.kubernetes.io/default-container"):
        metadata.get("annotations", {}).pop(key, None)
    metadata["annotations"] = metadata.get("annotations") or {}
    spec = pod["spec"]
    for container in (spec.get("initContainers") or []) + spec["containers"]:
        for key in ("env", "volumeMounts"):
            container[key] = sorted(container.get(key) or [], key=lambda one: one["name"])
    spec["volumes"] = sorted(spec.get("volumes") or [], key=lambda one: one["name"])
    return pod


def without_sidecar(template, parts):
    """A pod template of a chart as it was before the library was included."""
    bare = copy.deepcopy(template)
    for key in parts["labels"]:
        bare["metadata"]["labels"].pop(key)
    bare["metadata"]["labels"]["outgate.dev/inject"] = "true"
    spec = bare["spec"]
    ours = {key: {one["name"] for one in parts[key]} for key in ("env", "volumeMounts", "volumes")}
    spec["volumes"] = [v for v in spec["volumes"] if v["name"] not in ours["volumes"]]
    containers = {one["name"] for one in parts["initContainers"] + parts["containers"]}
    for key in ("initContainers", "containers"):
        spec[key] = [c for c in spec.get(key) or [] if c["name"] not in containers]
        for container in spec[key]:
            for part in ("env", "volumeMounts"):
                container[part] = [one for one in container.get(part) or [] if one["name"] not in ours[part]]
    return bare


class Template(unittest.TestCase):
    def test_the_programs_own_is_the_librarys(self):
        """UPDATE=1 writes it."""
        text = template_of(injector_objects())
        if os.environ.get("UPDATE"):
            EMBEDDED.write_text(text)
        self.assertEqual(EMBEDDED.read_text(), text, "UPDATE=1 writes it anew, and the program is to be built anew")

    def test_its_parts_are_what_charts_include(self):
        for native in (True, False):
            values = {"outgate": {"native": native, "credentials": {"secret": "keys"}}}
            parts = yaml.safe_load(template_of(injector_objects(values)))
            self.assertEqual(parts["default"], "native" if native else "classic")
            app = render_app(values | {"settle": False})
            spec = pod_spec(objects(app)["Deployment/shop"])
            mine = parts["native" if native else "classic"]
            policy = APP_VALUES.get("policy", {}).get("configMap")
            sidecar = (mine["initContainers"] or mine["containers"])[0]
            self.assertEqual(sidecar, sidecar_of(spec))
            for volume in mine["volumes"]:
                if volume["name"] == "outgate-policy" and policy:
                    volume["configMap"]["name"] = policy
                self.assertIn(volume, spec["volumes"])

    def test_a_cluster_without_native_sidecars_has_classic_ones(self):
        values = {"injector": {"enabled": True}, "outgate": {"native": False}}
        template = yaml.safe_load(template_of(objects(render(CHART, values, "1.28"))))
        self.assertEqual((template["default"], "native" in template), ("classic", False))
        asked = a_pod({"outgate.dev/native-sidecar": "true"})
        done = command_line([asked], yaml.safe_dump(template), check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("has classic sidecars only", done.stderr)


class Parity(unittest.TestCase):
    """The library in a chart, the webhook and the command line make the same pod."""

    def compare(self, outgate):
        values = {"outgate": outgate}
        rendered = objects(render_app(values))
        found = injector_objects({"outgate": APP_VALUES | outgate})
        template = template_of(found)
        parsed = yaml.safe_load(template)
        parts = parsed[parsed["default"]]
        with Injector(found) as injector:
            for key in ("Deployment/shop", "Job/shop-settle"):
                with self.subTest(key=key, values=outgate):
                    wanted = rendered[key]["spec"]["template"]
                    bare = without_sidecar(wanted, parts)
                    by_webhook, response = injector.mutate({"apiVersion": "v1", "kind": "Pod"} | bare)
                    self.assertTrue(response["allowed"], response)
                    workload = copy.deepcopy(rendered[key])
                    workload["spec"]["template"] = bare
                    (by_command,), _ = command_line([workload], template)
                    (by_command_as_pod,), _ = command_line([{"apiVersion": "v1", "kind": "Pod"} | bare], template)
                    self.assertEqual(by_command_as_pod, by_webhook, "to the letter")
                    by_command = by_command["spec"]["template"]
                    self.assertEqual({"apiVersion": "v1", "kind": "Pod"} | by_command, by_webhook, "to the letter")
                    # Rendered empty lists are none.
                    for one in (wanted, by_command):
                        if not one["spec"].get("initContainers"):
                            one["spec"].pop("initContainers", None)
                    self.assertEqual(in_order(by_command), in_order(wanted))

    def test_native(self):
        self.compare({})

    def test_classic(self):
        self.compare({"native": False})

    def test_all_volumes(self):
        self.compare(values_of("existing-secret")["outgate"])

    def test_no_ca(self):
        self.compare(values_of("no-ca")["outgate"])

    def test_redirection(self):
        """Where the library has it: what makes the rules comes first, and no app may have the sidecar's user."""
        if "mode" not in LIBRARY_APP:
            return
        redirect = {"app": {"mode": "redirect"}, "uid": 64532}
        self.compare({"uid": 64532, "app": {"mode": "redirect", "users": [1000]}})
        template = template_of(injector_objects({"outgate": redirect}))
        (pod,), _ = command_line([a_pod()], template)
        self.assertEqual([c["name"] for c in pod["spec"]["initContainers"]], ["outgate-redirect", "outgate"])
        done = command_line([a_pod(securityContext={"runAsUser": 64532}, containers=[{"name": "a", "image": "a"}])], template, check=False)
        self.assertIn("its connections would not be redirected", done.stderr)

    def test_a_runtime_by_annotation(self):
        """What the library makes of `app.runtimes`, the annotation makes of a pod; before there are any, it is refused."""
        found = injector_objects()
        asked = a_pod({"outgate.dev/runtimes": "java"})
        if "runtimes" not in LIBRARY_APP:
            self.assertIn("has nothing for `java`", command_line([asked], template_of(found), check=False).stderr)
            return
        (by_annotation,), _ = command_line([asked], template_of(found))
        values = {"outgate": {"app": {"runtimes": ["java"]}}}
        (by_values,), _ = command_line([a_pod()], template_of(injector_objects(values)))
        by_annotation["metadata"]["annotations"].pop("outgate.dev/runtimes")
        self.assertEqual(in_order(by_annotation), in_order(by_values))
        self.assertIn("JAVA_TOOL_OPTIONS", [e["name"] for e in by_values["spec"]["containers"][0]["env"]])

    def test_the_command_line_without_a_template(self):
        (mine,), _ = command_line([PODS["plain"]])
        (same,), _ = command_line([PODS["plain"]], EMBEDDED.read_text())
        self.assertEqual(mine, same)


class Mutated(unittest.TestCase):
    """What comes out is what Kubernetes takes, and as restricted as what came in."""

    @classmethod
    def setUpClass(cls):
        cls.found = injector_objects()
        with Injector(cls.found) as injector:
            cls.pods = {name: injector.mutate(pod) for name, pod in PODS.items()}
            cls.again = {name: injector.mutate(pod) for name, (pod, _) in cls.pods.items()}

    def test_kubernetes_takes_them(self):
        for name, (pod, _) in self.pods.items():
            for kube in KUBES:
                with self.subTest(pod=name, kube=kube):
                    kubernetes_validate.validate(pod, kube, strict=True)
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(self.pods["plain"][0], "1.27", strict=True)
        kubernetes_validate.validate(self.pods["classic"][0], "1.25", strict=True)

    def test_restricted(self):
        for name, (pod, _) in self.pods.items():
            self.assertEqual(restricted.breaches(pod["spec"]), [], name)
        worse = command_line([a_pod(containers=[{"name": "a", "image": "a"}])])[0][0]
        told = restricted.breaches(worse["spec"])
        self.assertTrue(told and all(one.startswith("a: ") for one in told), told)

    def test_a_second_call_changes_nothing(self):
        for name, (pod, response) in self.again.items():
            self.assertNotIn("patch", response, name)
            self.assertEqual(pod, self.pods[name][0])

    def test_keys_are_in_the_sidecar_only(self):
        for name, (pod, _) in self.pods.items():
            spec = pod["spec"]
            sidecar = sidecar_of(spec)
            for other in (spec.get("initContainers") or []) + spec["containers"]:
                if other is not sidecar:
                    mounts = [m for m in other.get("volumeMounts") or [] if m["name"].startswith("outgate-")]
                    self.assertTrue(all((m["name"], m["readOnly"]) == ("outgate-public", True) for m in mounts), name)

    def test_warnings_name_what_was_left(self):
        _, response = self.pods["all"]
        self.assertEqual(response["warnings"],
                         ["outgate: container `shop` sets SSL_CERT_FILE itself: that stays, and may lead around outgate"])

    def test_the_sidecar_starts_with_what_it_gets(self):
        """Its arguments and settings are the program's own."""
        for name, (pod, _) in self.pods.items():
            sidecar = sidecar_of(pod["spec"])
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "proxy.yaml").write_text("version: 1\n")
                settings = next(e["value"] for e in sidecar["env"] if e["name"] == "OUTGATE_SET")
                done = subprocess.run([OUTGATE, "check", "--config", folder], env={"OUTGATE_SET": settings}, capture_output=True, text=True)
                self.assertEqual(done.returncode, 0, f"{name}: {done.stderr}")


class Webhook(unittest.TestCase):
    def test_its_configuration_sees_labelled_pods_only(self):
        webhook = named(injector_objects(), "MutatingWebhookConfiguration")["webhooks"][0]
        self.assertEqual(webhook["objectSelector"], {"matchLabels": {"outgate.dev/inject": "true"}})
        self.assertEqual(webhook["namespaceSelector"]["matchExpressions"],
                         [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system", "shop"]}])
        self.assertEqual((webhook["failurePolicy"], webhook["sideEffects"], webhook["timeoutSeconds"], webhook["reinvocationPolicy"]),
                         ("Fail", "None", 5, "IfNeeded"))

    def test_its_pods_have_no_rights(self):
        found = injector_objects()
        spec = pod_spec(found["Deployment/egress-outgate-injector"])
        self.assertEqual(restricted.breaches(spec), [])
        self.assertIs(spec["automountServiceAccountToken"], False)
        self.assertFalse([key for key in found if re.match(r"(Cluster)?Role|ServiceAccount", key)])
        self.assertEqual(found["NetworkPolicy/egress-outgate-injector"]["spec"].get("egress", []), [])
        policy = found["PodDisruptionBudget/egress-outgate-injector"]["spec"]
        labels = found["Deployment/egress-outgate-injector"]["spec"]["template"]["metadata"]["labels"]
        for selector in (policy["selector"], found["Deployment/egress-outgate-injector"]["spec"]["selector"],
                         {"matchLabels": found["Service/egress-outgate-injector"]["spec"]["selector"]}):
            self.assertLessEqual(selector["matchLabels"].items(), labels.items())
        self.assertNotIn("outgate.dev/injected", labels)

    def test_refusals_and_what_is_left_alone(self):
        with Injector(injector_objects()) as injector:
            pod, response = injector.mutate(a_pod({"outgate.dev/polcy": "x"}))
            self.assertFalse(response["allowed"])
            self.assertEqual(response["status"]["message"],
                             "outgate: annotation `outgate.dev/polcy`: outgate knows no such key; did you mean `outgate.dev/policy`?")
            self.assertEqual(response["uid"], review({})["request"]["uid"])
            for request in ({"operation": "UPDATE"}, {"operation": "DELETE", "object": None}):
                _, response = injector.mutate(PODS["plain"], **request)
                self.assertEqual(response, {"uid": review({})["request"]["uid"], "allowed": True})
            with injector.connection() as connection:
                self.assertEqual(connection.post("{}")[0], 400)
            with injector.connection() as connection:
                # Refused by its length, before the body comes.
                connection.http.putrequest("POST", connection.path)
                connection.http.putheader("Content-Length", str(8 * 1024 * 1024 + 1))
                connection.http.endheaders()
                self.assertEqual(connection.http.getresponse().status, 413)
            _, response = injector.mutate(PODS["plain"], dryRun=True)
            self.assertIn("patch", response)
            for result, count in (("injected", 1), ("refused", 1), ("unchanged", 2), ("malformed", 2)):
                self.assertEqual(injector.metric(f'outgate_injector_requests_total{{result="{result}"}}'), count, result)

    def test_an_object_as_large_as_kubernetes_takes(self):
        with Injector(injector_objects()) as injector:
            pod = a_pod()
            pod["spec"]["containers"][0]["env"] = [{"name": f"V{i}", "value": "x" * 1000} for i in range(3000)]
            mutated, response = injector.mutate(pod)
            self.assertEqual(len(mutated["spec"]["containers"][0]["env"]), 3000 + 18)
            peak = int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{injector.process.pid}/status").read_text())[1]) / 1024
            print(f"\n# a review of {len(json.dumps(pod)) / 1e6:.1f} MB: resident at most {peak:.0f} MB")
            self.assertLess(peak, 200)

    def test_hostile_json_stays_below_the_memory_limit(self):
        """Maps in one another take the most memory for a byte."""
        found = injector_objects()
        limit, = re.fullmatch(r"(\d+)Mi", pod_spec(found["Deployment/egress-outgate-injector"])["containers"][0]["resources"]["limits"]["memory"]).groups()
        deep = '{"a":' * 100 + "0" + "}" * 100
        body = json.dumps(review(a_pod())).replace('"containers"', '"x": [' + ",".join([deep] * 490) + '], "containers"', 1)
        with Injector(found) as injector:
            with injector.connection() as connection:
                for _ in range(3):
                    self.assertEqual(connection.post(body)[0], 200)
            peak = int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{injector.process.pid}/status").read_text())[1]) / 1024
            print(f"\n# hostile JSON of {len(body) / 1e6:.1f} MB: resident at most {peak:.0f} MB")
            self.assertLess(peak, int(limit) * 0.9)
            with injector.connection() as connection:
                self.assertEqual(connection.post(body.replace("[", "[" + ",".join([deep] * 100) + ",", 1))[0], 413)

    def test_many_containers_stay_below_the_memory_limit(self):
        """Each is given variables and mounts: the answer grows with their number, not with the bytes that came."""
        pod = a_pod()
        with Injector(injector_objects()) as injector:
            for count, allowed in ((100, True), (101, False), (16_000, False)):
                pod["spec"]["containers"] = [{"name": f"c{i}"} | ({"securityContext": SECURE} if count <= 101 else {}) for i in range(count)]
                with injector.connection() as connection:
                    status, body = connection.post(json.dumps(review(pod)))
                self.assertEqual(status, 200)
                self.assertEqual(json.loads(body)["response"]["allowed"], allowed, count)
                self.assertLess(len(body), 1024 * 1024)
            peak = int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{injector.process.pid}/status").read_text())[1]) / 1024
            print(f"\n# 16,000 containers: resident at most {peak:.0f} MB")
            self.assertLess(peak, 128)

    def test_it_ends_in_good_order(self):
        with Injector(injector_objects(), linger="500ms") as injector:
            with injector.connection() as connection:
                connection.mutate(PODS["plain"])
                injector.process.send_signal(signal.SIGTERM)
                _, response = connection.mutate(PODS["plain"])
                self.assertIn("patch", response, "it serves on until the Service has heard of it")
            self.assertEqual(injector.process.wait(10), 0)

    def test_p99_at_fifty_a_second(self):
        with Injector(injector_objects()) as injector:
            took, errors = [], []

            def client(connection, offset):
                begun = time.monotonic() + offset
                for number in range(50):
                    time.sleep(max(0.0, begun + number * 0.1 - time.monotonic()))
                    sent = time.monotonic()
                    try:
                        _, response = connection.mutate(PODS["all"])
                        assert "patch" in response
                    except Exception as error:  # noqa: BLE001: it is told below
                        errors.append(error)
                    took.append(time.monotonic() - sent)

            with contextlib.ExitStack() as stack:
                connections = [stack.enter_context(injector.connection()) for _ in range(5)]
                clients = [threading.Thread(target=client, args=(one, index * 0.02)) for index, one in enumerate(connections)]
                begun = time.monotonic()
                for one in clients:
                    one.start()
                for one in clients:
                    one.join()
            took.sort()
            rate = len(took) / (time.monotonic() - begun)
            own = injector.metric("outgate_injector_request_duration_seconds_sum") / len(took)
            resident = int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{injector.process.pid}/status").read_text())[1]) / 1024
            print(f"\n# webhook at {rate:.0f} requests/s: p50 {took[len(took) // 2] * 1000:.1f} ms, p99 {took[int(len(took) * 0.99)] * 1000:.1f} ms, "
                  f"inside {own * 1000:.2f} ms on average; {resident:.0f} MB resident")
            self.assertEqual(errors, [])
            self.assertGreater(rate, 45)
            # Far below the webhook's timeout, on the slowest machine.
            self.assertLess(took[int(len(took) * 0.99)], 1.0)


    def test_a_flood_from_many_addresses(self):
        """Peers of so many addresses begin reviews that never come, on all the connections there are. Honest ones beside them, on a connection that
        stays and on new ones, are answered well below the webhook's five seconds: two small bodies of an address and 128 of all at once are waited
        for, a quarter of a second each."""
        for addresses, connections in ((48, 10), (400, 1)):
            with Injector(injector_objects()) as injector, subprocess.Popen(
                    [sys.executable, Path(__file__).with_name("flood.py"), str(injector.port), str(addresses), str(connections)],
                    stdout=subprocess.PIPE, text=True) as flood:
                try:
                    self.assertEqual(flood.stdout.readline(), "all have begun\n")
                    took = {"kept": [], "new": []}
                    begun = time.monotonic()
                    with injector.connection() as kept:
                        while time.monotonic() - begun < 3:
                            for way, connect in (("kept", lambda: contextlib.nullcontext(kept)), ("new", injector.connection)):
                                sent = time.monotonic()
                                with connect() as connection:
                                    _, response = connection.mutate(PODS["plain"])
                                self.assertIn("patch", response)
                                took[way].append(time.monotonic() - sent)
                            time.sleep(0.02)
                    lasted = time.monotonic() - begun
                finally:
                    flood.terminate()
                    total = flood.stdout.read().strip()
                    flood.wait(20)
                for way, times in took.items():
                    times.sort()
                    print(f"\n# beside {addresses} addresses with {connections} connections each, on a {way} one: p50 {times[len(times) // 2] * 1000:.0f} ms, "
                          f"p99 {times[int(len(times) * 0.99)] * 1000:.0f} ms, at most {times[-1] * 1000:.0f} ms, of {len(times)}")
                    self.assertLess(times[-1], 4)
                given_up = injector.metric('outgate_injector_requests_total{result="timeout"}')
                print(f"# {total} were begun, {given_up:.0f} given up, in some {lasted:.0f} s")
                self.assertGreater(given_up, addresses, "there was a flood")


class Certificates(unittest.TestCase):
    def test_a_swap_under_load(self):
        """Each connection sees the old certificate or the new one, and no request fails."""
        found, other = injector_objects(), injector_objects()
        data = [{file: base64.b64decode(text).decode() for file, text in one["Secret/egress-outgate-injector-tls"]["data"].items()}
                for one in (found, other)]
        roots = "".join(one["ca.crt"] for one in data)
        stop, failures, seen = threading.Event(), [], []
        with Injector(found) as injector:
            first = injector.metric("outgate_injector_certificate_not_after_timestamp_seconds")
            self.assertGreater(first, time.time() + 365 * 24 * 3600)

            def client():
                while not stop.is_set():
                    try:
                        with injector.connection(roots) as connection:
                            seen.append(connection.certificate["serialNumber"])
                            for _ in range(3):
                                _, response = connection.mutate(PODS["plain"])
                                assert "patch" in response
                    except Exception as error:  # noqa: BLE001: it is told below
                        failures.append(error)
                        return

            clients = [threading.Thread(target=client) for _ in range(3)]
            for one in clients:
                one.start()
            try:
                until("there is load", lambda: len(seen) > 10)
                # Half of a pair is not taken, and what was there goes on.
                injector.swap("tls", {"tls.crt": data[1]["tls.crt"], "tls.key": data[0]["tls.key"]})
                until("the half is refused", lambda: injector.metric('outgate_injector_reloads_total{what="certificate",result="refused"}') == 1)
                self.assertEqual(len(set(seen)), 1)
                injector.swap("tls", data[1])
                took = until("the new one is served", lambda: len(set(seen)) == 2)
                print(f"\n# a new certificate is served after {took:.1f} s")
                self.assertLess(took, 10)
                count = len(seen)
                until("and it alone", lambda: len(seen) > count + 20)
            finally:
                stop.set()
                for one in clients:
                    one.join()
            self.assertEqual(failures, [])
            self.assertEqual(len(set(seen[-5:])), 1)
            self.assertNotEqual(seen[-1], seen[0])

    def test_a_new_template_is_taken_over(self):
        found = injector_objects()
        with Injector(found) as injector:
            before, _ = injector.mutate(PODS["plain"])
            injector.swap("template", {"template.yaml": template_of(injector_objects({"outgate": {"log": "warn"}}))})
            until("it is in use", lambda: "--log=warn" in sidecar_of(injector.mutate(PODS["plain"])[0]["spec"])["args"])
            again, response = injector.mutate(before)
            self.assertEqual((again, len(response["warnings"])), (before, 1), "a pod that has its sidecar keeps it")
            injector.swap("template", {"template.yaml": "nonsense"})
            until("it is refused", lambda: injector.metric('outgate_injector_reloads_total{what="template",result="refused"}') == 1)
            self.assertIn("--log=warn", sidecar_of(injector.mutate(PODS["plain"])[0]["spec"])["args"])

    def test_the_charts_own_is_kept(self):
        """`lookup` finds what an earlier render made; without a cluster there is nothing to find."""
        first, second = injector_objects(), injector_objects()
        key = "Secret/egress-outgate-injector-tls"
        self.assertNotEqual(first[key]["data"], second[key]["data"])
        with FakeApi({"egress-outgate-injector-tls": first[key]["data"]}) as api, Chart.load(CHART) as chart:
            config = Config(kubeconfig_content=api.kubeconfig(), namespace="shop")
            files = config.render(chart, {"injector": {"enabled": True}}, name="egress", namespace="shop")
            again = objects({path: text for path, text in files.items() if text.strip()})
            self.assertTrue(any("egress-outgate-injector-tls" in path for path in api.asked), api.asked)
        self.assertEqual(again[key]["data"], first[key]["data"])
        self.assertEqual(named(again, "MutatingWebhookConfiguration"), named(first, "MutatingWebhookConfiguration"))

    def test_others_are_named_by_the_webhook(self):
        found = objects(render(CHART, values_of("injector-cert-manager")))
        webhook = named(found, "MutatingWebhookConfiguration")
        certificate = found["Certificate/egress-outgate-injector"]["spec"]
        authority = found["Certificate/egress-outgate-injector-ca"]["spec"]
        self.assertTrue(authority["isCA"])
        self.assertEqual(found["Issuer/egress-outgate-injector"]["spec"], {"ca": {"secretName": authority["secretName"]}})
        self.assertEqual(found[f"Issuer/{authority['issuerRef']['name']}"]["spec"], {"selfSigned": {}})
        self.assertEqual(webhook["metadata"]["annotations"]["cert-manager.io/inject-ca-from"], "shop/egress-outgate-injector")
        self.assertNotIn("caBundle", webhook["webhooks"][0]["clientConfig"])
        service = webhook["webhooks"][0]["clientConfig"]["service"]
        self.assertIn(f"{service['name']}.{service['namespace']}.svc", certificate["dnsNames"])
        volumes = pod_spec(found["Deployment/egress-outgate-injector"])["volumes"]
        self.assertEqual(volumes[0]["secret"]["secretName"], certificate["secretName"])
        self.assertEqual(certificate["issuerRef"]["name"], found["Issuer/egress-outgate-injector"]["metadata"]["name"])
        mine = injector_objects({"injector": {"certificates": {"mode": "certManager", "issuer": {"name": "company", "kind": "ClusterIssuer"}}}})
        self.assertFalse([key for key in mine if key.startswith("Issuer/") or key.endswith("-ca")])
        self.assertEqual(mine["Certificate/egress-outgate-injector"]["spec"]["issuerRef"],
                         {"group": "cert-manager.io", "kind": "ClusterIssuer", "name": "company"})
        values = values_of("injector-existing-secret")
        found = objects(render(CHART, values))
        bundle = named(found, "MutatingWebhookConfiguration")["webhooks"][0]["clientConfig"]["caBundle"]
        self.assertEqual(base64.b64decode(bundle).decode(), values["injector"]["certificates"]["caBundle"])
        self.assertFalse([key for key in found if key.startswith("Secret/")])


class FakeApi:
    """As much of the Kubernetes API as `lookup` asks for: discovery, and Secrets of one namespace."""

    def __init__(self, secrets):
        self.secrets, self.asked = secrets, []

    def answer(self, path):
        path = path.split("?")[0].rstrip("/")
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": []}
        if path == "/api/v1":
            return {"kind": "APIResourceList", "groupVersion": "v1", "resources": [
                {"name": "secrets", "singularName": "secret", "namespaced": True, "kind": "Secret", "verbs": ["get", "list"]}]}
        if path == "/version":
            return {"major": "1", "minor": "33", "gitVersion": "v1.33.0"}
        found = re.fullmatch(r"/api/v1/namespaces/shop/secrets/([^/]+)", path)
        if found and found[1] in self.secrets:
            return {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": found[1], "namespace": "shop"},
                    "type": "kubernetes.io/tls", "data": self.secrets[found[1]]}
        return None

    def __enter__(self):
        api = self

        class Server(http.server.BaseHTTPRequestHandler):
            def do_GET(self):  # noqa: N802: the name is the library's
                api.asked.append(self.path)
                value = api.answer(self.path)
                status = 200 if value else 404
                body = json.dumps(value or {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def kubeconfig(self):
        return yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "a",
            "clusters": [{"name": "a", "cluster": {"server": f"http://127.0.0.1:{self.server.server_port}"}}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a", "namespace": "shop"}}],
            "users": [{"name": "a", "user": {}}]})


class CommandLine(unittest.TestCase):
    def test_whole_chart_renders_pass_through(self):
        """Everything the app's chart renders, without the library's objects; comments of what does not change stay."""
        text = "# a comment\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {x: yes}\n---\n" + yaml.safe_dump(PODS["plain"])
        done = subprocess.run([OUTGATE, "inject", "-f", "-"], input=text, capture_output=True, text=True, check=True)
        self.assertTrue(done.stdout.startswith(text.split("---")[0]))
        again = subprocess.run([OUTGATE, "inject", "-f", "-"], input=done.stdout, capture_output=True, text=True, check=True)
        self.assertEqual(again.stdout, done.stdout)

    def test_exit_codes(self):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.yaml"
            wrong = Path(folder) / "wrong.yaml"
            wrong.write_text(yaml.safe_dump_all([PODS["plain"], a_pod({"outgate.dev/nonsense": "x"}), a_pod(hostNetwork=True)]))
            done = subprocess.run([OUTGATE, "inject", "-f", wrong, "-o", out], capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stdout, out.exists()), (1, "", False))
            self.assertEqual(len(re.findall("^outgate: Pod shop-: ", done.stderr, re.M)), 2, done.stderr)
            self.assertEqual(subprocess.run([OUTGATE, "inject"], capture_output=True).returncode, 2)
            with open("/dev/full", "w") as full:
                done = subprocess.run([OUTGATE, "inject", "-f", "-"], input="kind: Service\napiVersion: v1\n", stdout=full, stderr=subprocess.PIPE, text=True)
            self.assertEqual(done.returncode, 1)
            self.assertIn("outgate: standard output: ", done.stderr)
            self.assertEqual(subprocess.run([OUTGATE, "inject", "-f", "/nowhere"], capture_output=True).returncode, 1)
            none = subprocess.run([OUTGATE, "inject", "-f", "-", "-o", out], input="kind: Service\napiVersion: v1\n", capture_output=True, text=True)
            self.assertEqual((none.returncode, out.read_text()), (0, "kind: Service\napiVersion: v1\n"))
            self.assertIn("there is no pod to inject", none.stderr)


if __name__ == "__main__":
    unittest.main()
