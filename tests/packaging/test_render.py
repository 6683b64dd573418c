"""The charts: lint, renders, schemas, and what a pod may and may not do afterwards."""

import copy
import functools
import ipaddress
import json
import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

import kubernetes_validate
import yaml
from helm_python import chart as helm
from helm_python.errors import HelmError

import readme_table
import restricted
from engine import (APP, CASES, CHART, GOLDEN, KUBES, LIBRARY, OUTGATE, ROOT, AppChart, objects, pod_spec, render,
                    render_app, sidecar_of, values_of)

#: Objects of the Prometheus Operator and of cert-manager, of which no schema is at hand.
CUSTOM = {"PodMonitor", "PrometheusRule", "Certificate", "Issuer"}
APP_VALUES = {"app": {}, "app-classic": {"outgate": {"native": False}},
              "app-redirect": {"outgate": {"uid": 64532, "app": {"mode": "redirect", "users": [1000]}, "redirect": {"ports": [443, "8000-8999"]}}}}


def values_at(case, kube):
    """What a case may have in that version: 1.29 has no ValidatingAdmissionPolicy of v1, and the chart says so."""
    values = values_of(case)
    return values | {"admissionPolicy": {"enabled": False}} if kube == "1.29" else values


@functools.cache
def all_renders(kube="1.33"):
    """Every case of both charts, rendered once."""
    return [(case, render(CHART, values_at(case, kube), kube)) for case in CASES] + [
        (case, render_app(values, kube)) for case, values in APP_VALUES.items()]


def reached(policy, address):
    """Whether a NetworkPolicy lets its pods reach an address outside of all pods."""
    address = ipaddress.ip_address(address)
    for peer in policy["egress"][0]["to"]:
        block = peer.get("ipBlock")
        network = block and ipaddress.ip_network(block["cidr"], strict=False)
        if block and address.version == network.version and address in network:
            excepted = [ipaddress.ip_network(one) for one in block.get("except", [])]
            assert all(one.subnet_of(network) for one in excepted), "Kubernetes refuses exceptions that lie outside"
            if not any(address in one for one in excepted):
                return True
    return False


def metadata_addresses():
    """As the program knows them."""
    text = (ROOT / "src" / "upstream" / "ranges.rs").read_text()
    four = [".".join(part.split(", ")) for part in re.findall(r"Ipv4Addr::new\(([\d, ]+)\)", block(text, "METADATA_V4"))]
    six = [":".join(format(int(word, 0), "x") for word in part.split(", "))
           for part in re.findall(r"Ipv6Addr::new\(([\w, ]+)\)", block(text, "METADATA_V6"))]
    assert len(four) >= 6 and len(six) >= 3, (four, six)
    return four + six


def block(text, name):
    return text.split(f"const {name}", 1)[1].split("];", 1)[0]


class Charts(unittest.TestCase):
    def test_lint_is_strict_and_silent(self):
        with AppChart() as app:
            for path, cases in ((CHART, CASES), (app, [None])):
                for case in cases:
                    for kube in KUBES:
                        values = values_at(case, kube) if case else {}
                        report = helm.lint(path, values, strict=True, kube_version=f"v{kube}.0")
                        told = [m["error"] for m in report["messages"] if "icon is recommended" not in m["error"]]
                        self.assertEqual((told, report["errors"]), ([], []), f"{path.name} {case} {kube}")

    def test_golden_renders(self):
        """UPDATE=1 writes them; the diff is for reading."""
        for case, files in all_renders():
            text = "".join(f"# {path}\n{body.strip()}\n---\n" for path, body in sorted(files.items())
                           if "dashboard" not in path)
            golden = GOLDEN / f"{case}.yaml"
            if os.environ.get("UPDATE"):
                GOLDEN.mkdir(exist_ok=True)
                golden.write_text(text)
            self.assertEqual(golden.read_text(), text, f"{case}: UPDATE=1 writes it anew")

    def test_renders_are_the_same_everywhere(self):
        """For each version of Kubernetes, and twice: nothing is drawn by lot or looked up, which GitOps needs."""
        first = dict(all_renders())
        for kube in KUBES:
            for case, files in all_renders(kube):
                same = {path: text for path, text in first[case].items() if kube != "1.29" or "admission-policy" not in path}
                self.assertEqual(files, same, f"{case} {kube}")
        for case, files in all_renders.__wrapped__():
            self.assertEqual(files, first[case], f"{case} again")

    def test_versions_are_those_of_the_program(self):
        version = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
        chart, library = (yaml.safe_load((path / "Chart.yaml").read_text()) for path in (CHART, LIBRARY))
        for found in (chart["version"], chart["appVersion"], library["version"], chart["dependencies"][0]["version"],
                      yaml.safe_load((LIBRARY / "values.yaml").read_text())["image"]["tag"],
                      re.search(r"ARG VERSION=(.+)", (ROOT / "Dockerfile").read_text())[1]):
            self.assertEqual(found, version)

    def test_it_packs_with_its_library(self):
        with tempfile.TemporaryDirectory() as folder:
            archive = helm.package(CHART, destination=folder)
            self.assertIn("ConfigMap/outgate-policy", objects(render(archive, {})))

    def test_what_is_given_takes_the_place_of_the_default(self):
        """Helm merges maps: a default in values.yaml would stay beside what a user writes."""
        given = {"policy": {"files": {"mine.yaml": "version: 1\n"}},
                 "admissionPolicy": {"enabled": True, "namespaceSelector": {"matchLabels": {"team": "shop"}}}}
        found = objects(render(CHART, given))
        self.assertEqual(list(found["ConfigMap/outgate-policy"]["data"]), ["mine.yaml"])
        binding = found["ValidatingAdmissionPolicyBinding/egress-outgate-shop"]["spec"]
        self.assertEqual(binding["matchResources"]["namespaceSelector"], {"matchLabels": {"team": "shop"}})

    def test_readme_table(self):
        readme = readme_table.README.read_text()
        self.assertEqual(readme_table.made(readme), readme, "python tests/packaging/readme_table.py --write")

    def test_yaml_is_tidy(self):
        rules = "{extends: default, rules: {line-length: disable, document-start: disable, braces: {max-spaces-inside: 1}, " \
                "comments-indentation: disable}}"
        files = [str(p) for folder in (CHART, APP) for p in folder.rglob("*.yaml") if "templates" not in p.parts]
        files += [str(ROOT / "examples/compose/compose.yaml")]
        done = subprocess.run(["yamllint", "-s", "-d", rules, *files], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_wrong_values_are_refused(self):
        for chart, values, wanted in [
            (CHART, {"polici": {}}, "polici"),
            (CHART, {"policy": {"files": {"proxy.txt": "version: 1"}}}, "proxy.txt"),
            (CHART, {"policy": {"files": {"..data.yaml": "version: 1"}}}, "data.yaml"),
            (CHART, {"policy": {"files": {"a.yaml": ""}}}, "a.yaml"),
            (CHART, {"policy": {"create": "yes"}}, "create"),
            (CHART, {"monitoring": {"podMonitor": {"interval": "30"}}}, "interval"),
            (CHART, {"monitoring": {"grafana": {}}}, "grafana"),
            (CHART, {"monitoring": {"dashboard": {"labels": {"a": 1}}}}, "labels"),
            (CHART, {"networkPolicy": {"clusterCidrs": ["10.0.0.0"]}}, "clusterCidrs"),
            (CHART, {"admissionPolicy": {"validationActions": []}}, "validationActions"),
            (CHART, {"admissionPolicy": {"validationActions": ["Refuse"]}}, "validationActions"),
            (CHART, {"admissionPolicy": {"validationActions": ["Deny", "Audit", "Warn"]}}, "validationActions"),
            (CHART, {"admissionPolicy": {"matchLabels": {}}}, "matchLabels"),
            (CHART, {"test": {"enabled": 1}}, "enabled"),
            (CHART, {"injector": {"enable": True}}, "enable"),
            (CHART, {"injector": {"replicas": 0}}, "replicas"),
            (CHART, {"injector": {"port": 443}}, "port"),
            (CHART, {"injector": {"enabled": True, "port": 9902}}, "injector.port"),
            (CHART, {"injector": {"failurePolicy": "Open"}}, "failurePolicy"),
            (CHART, {"injector": {"timeoutSeconds": 31}}, "timeoutSeconds"),
            (CHART, {"injector": {"reinvocationPolicy": "Always"}}, "reinvocationPolicy"),
            (CHART, {"injector": {"excludedNamespaces": ["Kube"]}}, "excludedNamespaces"),
            (CHART, {"injector": {"resources": {"claims": []}}}, "claims"),
            (CHART, {"injector": {"networkPolicy": {}}}, "networkPolicy"),
            (CHART, {"injector": {"certificates": {"mode": "self"}}}, "mode"),
            (CHART, {"injector": {"certificates": {"mode": "existingSecret", "caBundle": "x"}}}, "secret"),
            (CHART, {"injector": {"certificates": {"mode": "existingSecret", "secret": "a"}}}, "caBundle"),
            (CHART, {"injector": {"certificates": {"caBundle": "LS0tLS1CRUdJTg=="}}}, "caBundle"),
            (CHART, {"injector": {"certificates": {"issuer": {"kind": "Vault"}}}}, "kind"),
            (None, {"nativ": True}, "nativ"),
            (None, {"native": "true"}, "native"),
            (None, {"image": {"digest": "sha256:12"}}, "digest"),
            (None, {"image": {"tag": "a b"}}, "tag"),
            (None, {"image": {"repository": ""}}, "repository"),
            (None, {"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
            (None, {"name": "Out Gate"}, "name"),
            (None, {"uid": 0}, "uid"),
            (None, {"gid": -1}, "gid"),
            (None, {"ports": {"proxy": 80}}, "proxy"),
            (None, {"ports": {"metrics": 9902}}, "metrics"),
            (None, {"healthHost": "127.0.0.1"}, "healthHost"),
            (None, {"drain": "20"}, "drain"),
            (None, {"classic": {"linger": 15}}, "linger"),
            (None, {"startup": {"failureThreshold": 0}}, "failureThreshold"),
            (None, {"readinessProbe": {"enabled": "no"}}, "enabled"),
            (None, {"resources": {"claims": {}}}, "claims"),
            (None, {"env": [{"name": "OUTGATE_SET", "value": "x"}]}, "env"),
            (None, {"env": [{"value": "x"}]}, "name"),
            (None, {"policy": {"configMap": ""}}, "configMap"),
            (None, {"credentials": {"token": {"expirationSeconds": 60}}}, "expirationSeconds"),
            (None, {"credentials": {"files": {}}}, "files"),
            (None, {"ca": {"mode": "cluster"}}, "mode"),
            (None, {"ca": {"mode": "existingSecret"}}, "secret"),
            (None, {"app": {"noProxy": ["a,b"]}}, "noProxy"),
            (None, {"app": {"java": True}}, "java"),
        ]:
            with self.subTest(values=values):
                # A library's values are checked in every chart that has it.
                given = values if chart else {"outgate": values}
                with self.assertRaises(HelmError) as raised:
                    render(CHART, given)
                self.assertIn(wanted, str(raised.exception))
                if not chart:
                    with self.assertRaises(HelmError):
                        render_app(given)


class Objects(unittest.TestCase):
    def test_names_stay_names(self):
        """Without quotes YAML takes these for numbers and truth values, and Kubernetes refuses the pod."""
        sidecar = {"name": "on", "policy": {"configMap": "123"}, "credentials": {"secret": "0123"},
                   "ca": {"mode": "existingSecret", "secret": "no", "extraConfigMap": "1e3"}}
        found = objects(render_app({"outgate": sidecar}))
        spec = pod_spec(found["Deployment/shop"])
        kubernetes_validate.validate(found["Deployment/shop"], KUBES[-1], strict=True)
        self.assertEqual(spec["initContainers"][0]["name"], "on")
        self.assertEqual({v["name"]: (v.get("configMap") or {}).get("name") or (v.get("secret") or {}).get("secretName")
                          for v in spec["volumes"] if "configMap" in v or "secret" in v},
                         {"outgate-policy": "123", "outgate-credentials": "0123", "outgate-ca": "no", "outgate-extra-ca": "1e3"})
        injector = {"enabled": True, "priorityClassName": "7", "certificates": {"mode": "existingSecret", "secret": "0x1f", "caBundle":
                    "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}}
        found = objects(render(CHART, {"outgate": {"policy": {"configMap": "123"}, "name": "on"}, "injector": injector,
                                       "policy": {"create": True}, "admissionPolicy": {"enabled": True}}))
        self.assertIn("ConfigMap/123", found)
        spec = pod_spec(found["Deployment/egress-outgate-injector"])
        self.assertEqual((spec["priorityClassName"], spec["volumes"][0]["secret"]["secretName"]), ("7", "0x1f"))
        for key, document in found.items():
            if document["kind"] not in CUSTOM:
                with self.subTest(object=key):
                    kubernetes_validate.validate(document, KUBES[-1], strict=True)

    def test_kubernetes_takes_them(self):
        for kube in KUBES:
            for case, files in all_renders(kube):
                for key, document in objects(files).items():
                    if document["kind"] in CUSTOM:
                        continue
                    with self.subTest(case=case, kube=kube, object=key):
                        kubernetes_validate.validate(document, kube, strict=True)

    def test_the_schemas_can_tell_a_mistake(self):
        job = objects(render_app())["Job/shop-settle"]
        wrong = copy.deepcopy(job)
        sidecar_of(pod_spec(wrong))["restartPolic"] = "Always"
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, "1.33", strict=True)

    def test_restricted(self):
        for case, files in all_renders():
            for key, document in objects(files).items():
                spec = pod_spec(document)
                if spec:
                    self.assertEqual(restricted.breaches(spec), [], f"{case} {key}")

    def test_restricted_whatever_the_pod_says(self):
        spec = copy.deepcopy(pod_spec(objects(render_app())["Deployment/shop"]))
        spec["securityContext"] = {"runAsUser": 0, "seccompProfile": {"type": "Unconfined"}}
        del spec["containers"][0]["securityContext"]
        self.assertEqual([one for one in restricted.breaches(spec) if one.startswith("outgate")], [])
        self.assertIn("shop: root", restricted.breaches(spec), "the checker sees the app's own breach")

    def test_keys_are_in_the_sidecar_only(self):
        for case, files in all_renders():
            for key, document in objects(files).items():
                spec = pod_spec(document)
                if not spec or key.endswith("-injector"):
                    continue
                sidecar = sidecar_of(spec)
                volumes = {v["name"] for v in spec["volumes"]}
                self.assertEqual({m["name"] for m in sidecar["volumeMounts"]}, volumes, f"{case} {key}: all are mounted")
                for other in (spec.get("initContainers") or []) + spec["containers"]:
                    if other is sidecar:
                        continue
                    for mount in other.get("volumeMounts") or []:
                        self.assertEqual((mount["name"], mount["readOnly"]), ("outgate-public", True), f"{case} {key}")
                for volume in spec["volumes"]:
                    if volume["name"] == "outgate-private":
                        self.assertEqual(volume["emptyDir"]["medium"], "Memory")
                for mount in sidecar["volumeMounts"]:
                    self.assertNotIn("subPath", mount, "a subPath mount never changes")
                self.assertNotIn("checksum", json.dumps(document), "a changed policy must not roll the app")

    def test_native_and_classic(self):
        native, classic = (pod_spec(objects(render_app(APP_VALUES[case]))["Job/shop-settle"]) for case in ("app", "app-classic"))
        first = native["initContainers"][0]
        self.assertEqual((first["name"], first["restartPolicy"]), ("outgate", "Always"))
        self.assertIn("startupProbe", first)
        self.assertNotIn("lifecycle", first, "a native sidecar outlives the app: no hook is needed")
        settings = next(e["value"] for e in first["env"] if e["name"] == "OUTGATE_SET")
        self.assertLess(int(re.search(r"^runtime.drain=(\d+)s$", settings, re.M)[1]), native.get("terminationGracePeriodSeconds", 30))
        self.assertFalse(classic.get("initContainers"))
        sidecar = classic["containers"][0]
        self.assertEqual(sidecar["name"], "outgate", "before the app, so that the app waits for its postStart")
        self.assertIn("--wait=60", sidecar["lifecycle"]["postStart"]["exec"]["command"])
        self.assertNotIn("restartPolicy", sidecar)
        settings = next(e["value"] for e in sidecar["env"] if e["name"] == "OUTGATE_SET")
        grace = classic.get("terminationGracePeriodSeconds", 30)
        spans = [int(re.search(rf"^{key}=(\d+)s$", settings, re.M)[1]) for key in ("runtime.linger", "runtime.drain")]
        self.assertLess(sum(spans), grace)
        self.assertIn("/quit", classic["containers"][1]["command"][-1])
        # Kubernetes before 1.28 knows no restartPolicy of a container: that is why classic is there.
        job = objects(render_app(APP_VALUES["app-classic"]))["Job/shop-settle"]
        kubernetes_validate.validate(job, "1.25", strict=True)
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(objects(render_app())["Job/shop-settle"], "1.27", strict=True)

    def test_redirection(self):
        """The rules are made before anything else runs, and their one exception is the sidecar's user."""
        values = APP_VALUES["app-redirect"]
        for native in (True, False):
            given = {"outgate": values["outgate"] | {"native": native}}
            spec = pod_spec(objects(render_app(given))["Deployment/shop"])
            first = spec["initContainers"][0]
            self.assertEqual(first["name"], "outgate-redirect")
            self.assertNotIn("volumeMounts", first)
            context = first["securityContext"]
            self.assertEqual((context["runAsUser"], context["capabilities"]), (0, {"drop": ["ALL"], "add": ["NET_ADMIN"]}))
            sidecar = sidecar_of(spec)
            self.assertEqual(sidecar["securityContext"]["runAsUser"], 64532)
            self.assertIn("--uid=64532", first["args"])
            self.assertEqual(sidecar["securityContext"]["capabilities"], {"drop": ["ALL"]})
            settings = next(e["value"] for e in sidecar["env"] if e["name"] == "OUTGATE_SET")
            port = next(a.removeprefix("--port=") for a in first["args"] if a.startswith("--port="))
            for address in (f"127.0.0.1:{port}", f"[::1]:{port}"):
                self.assertIn(f'{{address: "{address}", accept: [transparent]}}', settings)
            # The program takes these very arguments.
            done = subprocess.run([OUTGATE, *first["args"], "--dry-run", "--backend", "nft"], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("tcp dport 8000-8999 redirect", done.stdout)
            self.assertIn("ip daddr 10.0.0.0/8 return", done.stdout)
        found = restricted.breaches(spec)
        self.assertEqual(found, [])
        wider = copy.deepcopy(spec)
        wider["initContainers"][0]["securityContext"]["capabilities"]["add"].append("SYS_ADMIN")
        self.assertEqual(restricted.breaches(wider), ["outgate-redirect: capabilities"])
        self.assertNotIn("redirect", json.dumps(objects(render_app())), "only where it is asked for")

    def test_redirection_refuses_the_apps_user(self):
        for values, wanted in [({"app": {"mode": "redirect"}}, "65532"),
                               ({"uid": 64532, "app": {"mode": "redirect"}}, "app.users"),
                               ({"uid": 64532, "app": {"mode": "redirect", "users": [1]}, "redirect": {"ports": [53]}}, "ports"),
                               ({"uid": 64532, "app": {"mode": "redirect", "users": [1]}, "redirect": {"excludeCIDRs": ["0.0.0.0/0"]}}, "excludeCIDRs"),
                               ({"uid": 64532, "app": {"mode": "redirect", "users": [1]}, "ports": {"proxy": 3129}}, "are both 3129"),
                               ({"ports": {"admin": 9902}}, "are both 9902"),
                               ({"ports": {"health": 3128}}, "are both 3128"),
                               ({"uid": 1000, "app": {"mode": "redirect", "users": [1000]}}, "user 1000")]:
            with self.assertRaises(HelmError) as raised:
                render_app({"outgate": values})
            self.assertIn(wanted, str(raised.exception))
        with self.assertRaises(HelmError):
            render_app({"outgate": {"app": {"mode": "iptables"}}})

    def test_a_cluster_without_native_sidecars_is_told(self):
        with self.assertRaises(HelmError) as raised:
            render_app(kube="1.28")
        self.assertIn("native: false", str(raised.exception))
        self.assertEqual(render_app(APP_VALUES["app-classic"], "1.28"), render_app(APP_VALUES["app-classic"], "1.33"))

    def test_a_cluster_without_admission_policies_is_told(self):
        """A guard that was silently left out would be none."""
        values = values_of("enforced")
        for kube in ("1.29", "1.25"):
            with self.assertRaises(HelmError) as raised:
                render(CHART, values | {"outgate": {"native": False}}, kube)
            self.assertIn(f"Kubernetes v{kube}.0 has no ValidatingAdmissionPolicy of v1, which is there since 1.30; set `admissionPolicy.enabled: false`",
                          str(raised.exception))
        found = objects(render(CHART, values, "1.30"))
        for kind in ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"):
            kubernetes_validate.validate(found[f"{kind}/egress-outgate-shop"], "1.30", strict=True)

    def test_a_library_without_its_name_says_so(self):
        with AppChart() as path:
            chart = path / "Chart.yaml"
            chart.write_text(chart.read_text().replace("alias: outgate", "alias: egress"))
            values = path / "values.yaml"
            values.write_text(values.read_text().replace("outgate:\n", "egress:\n"))
            with self.assertRaises(HelmError) as raised:
                render(path, {"settle": False})
            self.assertRegex(str(raised.exception), "alias: outgate|outgate.policy|nil pointer")

    def test_custom_objects(self):
        found = objects(render(CHART, values_of("enforced")))
        monitor = found["PodMonitor/egress-outgate"]
        self.assertEqual(monitor["apiVersion"], "monitoring.coreos.com/v1")
        self.assertEqual(monitor["metadata"]["labels"]["release"], "prometheus")
        endpoint = monitor["spec"]["podMetricsEndpoints"]
        self.assertEqual(endpoint, [{"port": "outgate-metrics", "path": "/metrics", "interval": "30s"}])
        spec = pod_spec(found["Pod/egress-outgate-test"])
        self.assertIn(endpoint[0]["port"], [p["name"] for p in sidecar_of(spec)["ports"]])
        self.assertLessEqual(len(endpoint[0]["port"]), 15, "names of ports have at most 15 letters")
        self.assertEqual(monitor["spec"]["selector"]["matchLabels"].items()
                         - found["Pod/egress-outgate-test"]["metadata"]["labels"].items(), set())
        rule = found["PrometheusRule/egress-outgate"]
        self.assertEqual(rule["spec"], yaml.safe_load((CHART / "rules" / "outgate.yaml").read_text()))
        self.assertEqual(set(rule["spec"]), {"groups"})
        board = found["ConfigMap/egress-outgate-dashboard"]
        self.assertEqual(json.loads(board["data"]["outgate.json"]),
                         json.loads((CHART / "dashboards" / "outgate.json").read_text()))

    def test_network_policies_leave_out_metadata(self):
        found = objects(render(CHART, values_of("enforced")))
        inside, outside = (found[f"NetworkPolicy/egress-outgate-{which}"]["spec"] for which in ("inside", "outside"))
        self.assertEqual(inside["podSelector"], {})
        self.assertEqual(outside["podSelector"]["matchLabels"], {"outgate.dev/injected": "true"})
        for address in (*metadata_addresses(), "fe80::a9fe:a9fe"):
            for policy in (inside, outside):
                self.assertFalse(reached(policy, address), address)
        for address, by_all, by_some in [("10.1.2.3", True, True), ("100.64.0.1", True, True), ("fd12::1", True, True),
                                         ("1.1.1.1", False, True), ("2606:4700::1111", False, True)]:
            self.assertEqual((reached(inside, address), reached(outside, address)), (by_all, by_some), address)

    def test_network_policies_leave_metadata_out_of_any_network(self):
        """Networks as users write them, judged by Python's own arithmetic: what metadata services they hold is excepted, and no more than
        the link-local ranges beside it. One that is nothing but a metadata service is refused."""
        services = [ipaddress.ip_address(one) for one in (*metadata_addresses(), "fe80::a9fe:a9fe")]
        local = [ipaddress.ip_network("169.254.0.0/16"), ipaddress.ip_network("fe80::/10")]
        networks = ["0.0.0.0/0", "100.96.0.0/11", "100.100.0.0/16", "100.100.100.192/27", "168.63.0.0/16", "168.0.0.0/6", "192.0.0.0/24",
                    "192.0.0.128/25", "169.0.0.0/8", "169.254.0.0/16", "169.254.128.0/17", "169.254.169.0/24", "169.254.169.254/31",
                    "169.254.20.10/32", "10.0.0.0/8", "10.1.2.3/32", "100.100.100.201/32", "::/0", "fd00::/8", "FD00:EC2::/32",
                    "fd00:0ec2:0:0::/64", "fd00:ec2::254/127", "fd00:ec2:0:0:0:0:0:254/120", "fd20:00CE::/96", "fd20:ce::/31", "fd21::/16",
                    "fe80::/10", "fe80::a9fe:0/112", "2001:db8::/32", "fc00::/6", "fd00:ec2::1:0/112"]
        networks += [f"{ipaddress.ip_network((one, bits), strict=False)}" for one in services for bits in range(0, one.max_prefixlen, 9)]
        for text in networks:
            with self.subTest(network=text):
                network = ipaddress.ip_network(text, strict=False)
                policy = objects(render(CHART, {"networkPolicy": {"enabled": True, "clusterCidrs": [text]}}))["NetworkPolicy/egress-outgate-inside"]["spec"]
                excepted = [ipaddress.ip_network(one) for one in policy["egress"][0]["to"][1]["ipBlock"].get("except", [])]
                for one in excepted:
                    self.assertTrue(one.version == network.version and one != network and one.subnet_of(network), "Kubernetes refuses it")
                    self.assertTrue(one in local or one.network_address in services and one.num_addresses == 1, one)
                    self.assertFalse([other for other in excepted if other != one and one.subnet_of(other)])
                for one in services:
                    self.assertFalse(reached(policy, one), one)
        for one in services:
            text = f"{one}/{one.max_prefixlen}"
            with self.assertRaises(HelmError) as raised:
                render(CHART, {"networkPolicy": {"enabled": True, "clusterCidrs": ["10.0.0.0/8", text]}})
            self.assertIn(f"names {text}, which is a metadata service", str(raised.exception))
        for text in ("1:2:3:4:5:6:7::8:9/64", "1:2::3:4:5:6:7:8/64"):
            with self.assertRaises(HelmError) as raised:
                render(CHART, {"networkPolicy": {"enabled": True, "clusterCidrs": [text]}})
            self.assertIn("is no address", str(raised.exception))

    def test_policies_of_the_charts_are_right(self):
        """As the program judges them."""
        checked = 0
        for case, files in all_renders():
            for key, document in objects(files).items():
                if document["kind"] != "ConfigMap" or "dashboard" in key or key.endswith("-injector"):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    for name, text in document["data"].items():
                        (Path(folder) / name).write_text(text)
                    spec = next(pod_spec(one) for name, one in objects(files).items()
                                if pod_spec(one) and not name.endswith("-injector"))
                    settings = next(e["value"] for e in sidecar_of(spec)["env"] if e["name"] == "OUTGATE_SET")
                    done = subprocess.run([OUTGATE, "check", "--config", folder], capture_output=True, text=True,
                                          env={"OUTGATE_SET": settings})
                    self.assertEqual(done.returncode, 0, f"{case} {key}: {done.stderr}")
                    checked += 1
        self.assertGreaterEqual(checked, len([case for case in CASES if values_of(case).get("policy", {}).get("create", True)]))

    def test_java_gets_what_the_program_prints(self):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "proxy.yaml").write_text("version: 1\n")
            done = subprocess.run(
                [OUTGATE, "env", "--format", "json", "--runtime", "java", "--config", folder, "--set",
                 "interception.truststore=/var/run/outgate/truststore.p12"], capture_output=True, text=True, check=True)
        wanted = json.loads(done.stdout)["JAVA_TOOL_OPTIONS"].split()
        spec = pod_spec(objects(render_app({"outgate": {"app": {"runtimes": ["java"], "noProxy": [".internal", "10.0.0.0/8", "db"]}}}))["Deployment/shop"])
        found = next(e["value"] for e in spec["containers"][0]["env"] if e["name"] == "JAVA_TOOL_OPTIONS").split()
        self.assertEqual(len(found), len(wanted))
        for ours, theirs in zip(found, wanted):
            if "nonProxyHosts" in ours:
                self.assertTrue(ours.startswith(theirs + "|"), ours)
                self.assertTrue(ours.endswith("|*.internal|db"), ours)
            else:
                self.assertEqual(ours, theirs)
        settings = next(e["value"] for e in sidecar_of(spec)["env"] if e["name"] == "OUTGATE_SET")
        self.assertIn("interception.truststore=/var/run/outgate/truststore.p12", settings.splitlines())

    def test_the_app_gets_what_the_program_prints(self):
        """The variables are those of `outgate env`, which real clients are tested with; only NO_PROXY has more."""
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "proxy.yaml").write_text("version: 1\n")
            done = subprocess.run(
                [OUTGATE, "env", "--format", "json", "--config", folder, "--set",
                 "interception.bundle=/var/run/outgate/ca-bundle.pem"], capture_output=True, text=True, check=True)
        wanted = json.loads(done.stdout)
        app = pod_spec(objects(render_app())["Deployment/shop"])["containers"][0]
        found = {e["name"]: e["value"] for e in app["env"]}
        self.assertEqual(set(found), set(wanted))
        for name, value in found.items():
            if name.upper() == "NO_PROXY":
                self.assertTrue(value.startswith(wanted[name] + ","), value)
            else:
                self.assertEqual(value, wanted[name], name)


if __name__ == "__main__":
    unittest.main()
