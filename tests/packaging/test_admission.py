"""The admission policy, evaluated: which pods it takes, and what it says about those it does not."""

import copy
import unittest

import cel

from engine import CHART, objects, pod_spec, render, render_app, values_of

NATIVE = pod_spec(objects(render_app())["Deployment/shop"])
CLASSIC = pod_spec(objects(render_app({"outgate": {"native": False}}))["Deployment/shop"])


def judge(policy, spec):
    """The messages of all validations that fail, as the API server would give them; it drops nulls before that."""
    world = {"object": {"spec": {key: value for key, value in spec.items() if value is not None}}, "variables": {}}
    for variable in policy["variables"]:
        # One may use those that stand before it.
        world["variables"][variable["name"]] = cel.evaluate(variable["expression"], world)
    failed = []
    for validation in policy["validations"]:
        result = cel.evaluate(validation["expression"], world)
        assert isinstance(result, bool), result
        if not result:
            failed.append(validation["message"])
    return failed


class Policy(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        found = objects(render(CHART, values_of("enforced")))
        cls.policy = found["ValidatingAdmissionPolicy/egress-outgate-shop"]["spec"]
        cls.binding = found["ValidatingAdmissionPolicyBinding/egress-outgate-shop"]["spec"]

    def test_a_pod_of_the_library_passes(self):
        self.assertEqual(judge(self.policy, NATIVE), [])
        self.assertEqual(judge(self.policy, CLASSIC), [])

    def test_a_pod_with_all_that_the_library_has_passes(self):
        given = {"credentials": {"secret": "keys", "token": {"audience": "vault"}}, "app": {"runtimes": ["java"]},
                 "ca": {"mode": "existingSecret", "secret": "ca", "extraConfigMap": "roots"}}
        for native in (True, False):
            spec = pod_spec(objects(render_app({"outgate": given | {"native": native}}))["Deployment/shop"])
            sidecar = next(c for c in (spec.get("initContainers") or []) + spec["containers"] if c["name"] == "outgate")
            self.assertEqual(len(sidecar["volumeMounts"]), 7)
            self.assertEqual(judge(self.policy, spec), [])

    def test_a_pod_that_is_redirected_passes_and_its_app_may_not_have_the_user(self):
        values = values_of("enforced")
        values["outgate"] = values.get("outgate", {}) | {"uid": 64532, "app": {"mode": "redirect", "users": [1000]}}
        policy = objects(render(CHART, values))["ValidatingAdmissionPolicy/egress-outgate-shop"]["spec"]
        for native in (True, False):
            given = {"uid": 64532, "native": native, "app": {"mode": "redirect", "users": [1000]}}
            spec = pod_spec(objects(render_app({"outgate": given}))["Deployment/shop"])
            self.assertEqual(spec["initContainers"][0]["name"], "outgate-redirect")
            self.assertEqual(judge(policy, spec), [])
            changed = copy.deepcopy(spec)
            changed["containers"][-1]["securityContext"]["runAsUser"] = 64532
            self.assertEqual(len(judge(policy, changed)), 1)
            for change in (
                lambda all: all.pop(0),
                lambda all: all.insert(0, {"name": "early", "image": "early"}),
                lambda all: all[0].update(image="outgate-redirect.evil.example/x:1"),
                lambda all: all[0].update(restartPolicy="Always"),
                lambda all: all[0].update(command=["true"]),
                lambda all: all[0].pop("args"),
                lambda all: all[0].update(args=["redirect", "setup"]),
                lambda all: all[0]["args"].__setitem__(1, "remove"),
                lambda all: all[0]["args"].__setitem__(2, "--uid=1000"),
                lambda all: all[0]["args"].append("--uid=1000"),
                lambda all: all[0]["args"].append("--help"),
                lambda all: all[0].update(name="other"),
            ):
                changed = copy.deepcopy(spec)
                change(changed["initContainers"])
                told = judge(policy, changed)
                self.assertEqual(len(told), 1, told)
                self.assertIn("first init container makes the rules", told[0])
            changed = copy.deepcopy(spec)
            changed["initContainers"][0]["volumeMounts"] = [{"name": "x", "mountPath": "/usr/local/bin"}]
            changed["initContainers"][0]["env"] = [{"name": "LD_PRELOAD", "value": "/x.so"}]
            self.assertEqual(len(judge(policy, changed)), 2)

    def test_it_fails_closed_and_for_chosen_namespaces(self):
        self.assertEqual(self.policy["failurePolicy"], "Fail")
        self.assertEqual(self.binding["matchResources"]["namespaceSelector"], {"matchLabels": {"outgate.dev/enforce": "true"}})
        self.assertEqual(self.binding["policyName"], "egress-outgate-shop")
        self.assertEqual(self.binding["validationActions"], ["Deny", "Audit"])

    def test_what_it_refuses(self):
        def app(change):
            return lambda spec: change(spec["containers"][-1])

        def sidecar(change):
            return lambda spec: change(spec["initContainers"][0])

        debugger = {"name": "debugger", "image": "busybox", "securityContext": {"runAsUser": 65532}}
        key = {"name": "outgate-private", "mountPath": "/x"}
        for change, wanted in [
            (lambda spec: spec.pop("initContainers"), ["no outgate sidecar", ]),
            (lambda spec: spec.update(initContainers=[]), ["no outgate sidecar"]),
            (sidecar(lambda c: c.update(image="outgate.evil.example/x:1")), ["no outgate sidecar"]),
            (sidecar(lambda c: c.update(image="outgateway:1")), ["no outgate sidecar"]),
            (sidecar(lambda c: c["securityContext"].update(runAsUser=1000)), ["runs as user 65532"]),
            (sidecar(lambda c: c.pop("securityContext")), ["runs as user 65532"]),
            (sidecar(lambda c: c["securityContext"].update(privileged=True)), ["runs as user 65532"]),
            (sidecar(lambda c: c.pop("restartPolicy")), ["no outgate sidecar"]),
            (sidecar(lambda c: c.update(name="x")) , ["no outgate sidecar", "mounted in", "is the sidecar's"]),
            (lambda spec: spec.update(initContainers=[], ephemeralContainers=spec["initContainers"]), ["no outgate sidecar"]),
            (sidecar(lambda c: c.update(command=["sleep"])), ["with `run`"]),
            (sidecar(lambda c: c.pop("args")), ["with `run`"]),
            (sidecar(lambda c: c.update(args=[])), ["with `run`"]),
            (sidecar(lambda c: c.update(args=["--version"])), ["with `run`"]),
            (sidecar(lambda c: c.update(args=["check", "--config=/etc/outgate/policy"])), ["with `run`"]),
            (sidecar(lambda c: c["args"].append("--help")), ["with `run`"]),
            (sidecar(lambda c: c["args"].append("-V")), ["with `run`"]),
            (sidecar(lambda c: c["securityContext"].update(capabilities={"drop": ["ALL"], "add": ["NET_ADMIN"]})), ["no capabilities"]),
            (sidecar(lambda c: c["volumeMounts"].append({"name": "x", "mountPath": "/usr/local/bin"})), ["only its own volumes"]),
            (sidecar(lambda c: c["volumeMounts"].append({"name": "outgate-x", "mountPath": "/etc/outgate/ca"})), ["only its own volumes"]),
            (sidecar(lambda c: c["volumeMounts"].append({"name": "outgate-policy", "mountPath": "/usr/local/bin"})), ["only its own volumes"]),
            (sidecar(lambda c: c["volumeMounts"][0].update(subPath="x")), ["only its own volumes"]),
            (sidecar(lambda c: c["volumeMounts"][0].update(subPathExpr="$(X)")), ["only its own volumes"]),
            (sidecar(lambda c: c["volumeMounts"].append({"name": "x", "mountPath": "/var/run/secrets/../../../usr/local/bin"})),
             ["only its own volumes"]),
            (sidecar(lambda c: c["volumeMounts"].append({"name": "x", "mountPath": "/var/run/secrets//outgate"})), ["only its own volumes"]),
            (sidecar(lambda c: c["volumeMounts"].append({"name": "x", "mountPath": "/var/run/secrets/outgate"})), ["only its own volumes"]),
            (sidecar(lambda c: c.update(volumeDevices=[{"name": "x", "devicePath": "/usr/local/bin/outgate"}])), ["only its own volumes"]),
            (sidecar(lambda c: c["env"].append({"name": "LD_PRELOAD", "value": "/etc/outgate/policy/a.so"})), ["no variables LD_*"]),
            (sidecar(lambda c: c.update(envFrom=[{"configMapRef": {"name": "x"}}])), ["no variables LD_*"]),
            (sidecar(lambda c: c.update(lifecycle={"postStart": {"exec": {"command": ["/x"]}}})), ["outgate probe"]),
            (sidecar(lambda c: c.update(lifecycle={"postStart": {"exec": {"command": ["/usr/local/bin/outgate", "run"]}}})), ["outgate probe"]),
            (sidecar(lambda c: c.update(lifecycle={"preStop": {"exec": {"command": ["/usr/local/bin/outgate", "probe"]}}})), ["outgate probe"]),
            (sidecar(lambda c: c.update(lifecycle={"postStart": {"httpGet": {"port": 80}}})), ["outgate probe"]),
            (sidecar(lambda c: c["livenessProbe"].update(exec={"command": ["/x"]})), ["outgate probe"]),
            (lambda spec: spec.update(ephemeralContainers=[{"name": "d", "image": "busybox", "targetContainerName": "outgate"}]),
             ["as its target"]),
            (app(lambda c: c["securityContext"].update(runAsUser=65532)), ["is the sidecar's"]),
            (lambda spec: spec.update(securityContext={"runAsUser": 65532}), ["is the sidecar's"]),
            (lambda spec: spec.update(ephemeralContainers=[debugger]), ["is the sidecar's"]),
            (app(lambda c: c["volumeMounts"].append(key)), ["mounted in the sidecar only"]),
            (lambda spec: spec["initContainers"].append({"name": "i", "image": "i", "volumeMounts": [key]}),
             ["mounted in the sidecar only"]),
            (lambda spec: spec.update(hostNetwork=True), ["hostNetwork"]),
            (lambda spec: spec.update(hostPID=True), ["hostNetwork"]),
            (lambda spec: spec.update(shareProcessNamespace=True), ["hostNetwork"]),
        ]:
            spec = copy.deepcopy(NATIVE)
            change(spec)
            told = judge(self.policy, spec)
            with self.subTest(wanted=wanted, told=told):
                self.assertEqual(len(told), len(wanted))
                for part in wanted:
                    self.assertTrue(any(part in one for one in told), part)

    def test_when_it_looks(self):
        condition = self.policy["matchConditions"][0]["expression"]
        changed = copy.deepcopy(NATIVE) | {"hostNetwork": True}
        for operation, old, new, wanted in [("CREATE", None, NATIVE, True), ("UPDATE", NATIVE, NATIVE, False),
                                            ("UPDATE", NATIVE, changed, True)]:
            world = {"request": {"operation": operation}, "object": {"spec": new}, "oldObject": old and {"spec": old}}
            self.assertEqual(cel.evaluate(condition, world), wanted, operation)

    def test_what_it_leaves_alone(self):
        for change in (
            lambda spec: spec.update(hostNetwork=False, shareProcessNamespace=False, securityContext={"fsGroup": 65532}),
            lambda spec: spec["containers"][-1].pop("securityContext"),
            lambda spec: spec["containers"][-1].pop("volumeMounts"),
            lambda spec: spec.update(ephemeralContainers=[{"name": "d", "image": "busybox", "targetContainerName": "shop"}]),
            lambda spec: spec["initContainers"][0].update(image="outgate@sha256:" + "0" * 64),
            # What Kubernetes, and webhooks of clouds, add to every container.
            lambda spec: spec["initContainers"][0]["volumeMounts"].extend([
                {"name": "kube-api-access-x7k2p", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True},
                {"name": "aws-iam-token", "mountPath": "/var/run/secrets/eks.amazonaws.com/serviceaccount", "readOnly": True}]),
            lambda spec: spec["initContainers"][0]["securityContext"].update(capabilities={"drop": ["ALL"], "add": []}),
        ):
            spec = copy.deepcopy(NATIVE)
            change(spec)
            self.assertEqual(judge(self.policy, spec), [])


if __name__ == "__main__":
    unittest.main()
