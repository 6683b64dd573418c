"""checkov over all that the charts render and both Dockerfiles: nothing but what is accepted here, each with its reason."""

import functools
import json
import os
import re
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

import yaml

from engine import ROOT, missing, objects
from test_render import all_renders

#: What it says, of what (file and object), and why that stays as it is. An entry that nothing is told of any more is to be taken out.
ACCEPTED = {
    "CKV_K8S_8": [(r"(Pod\.shop\.egress-outgate-test|Job\.default\.shop-settle|Deployment\.default\.shop)$",
                   "no liveness probe: the test's pod and the Job run to their end, and the example's app is a placeholder; the sidecar has one, "
                   "which is not seen at an init container")],
    "CKV_K8S_9": [(r"(Pod\.shop\.egress-outgate-test|Job\.default\.shop-settle|Deployment\.default\.shop)$",
                   "no readiness probe: as above; at the sidecar it is off by default, so that a secret's outage does not take the app out of its Services")],
    "CKV_K8S_11": [(r"(Pod\.shop\.egress-outgate-test|\.shop|\.shop-settle|-injector)$", "no CPU limit: throttling is latency; the memory is limited")],
    "CKV_K8S_15": [(r"(Pod\.shop\.egress-outgate-test|\.shop|\.shop-settle|-injector)$",
                    "IfNotPresent: a release's tag does not move, and a pod must not wait for a registry to start again; `image.pullPolicy` and `image.digest`")],
    "CKV_K8S_21": [(r"app(-\w+)?\.yaml \w+\.default\.shop", "the example is rendered without a namespace, which is who installs it to say")],
    "CKV_K8S_22": [(r"\.default\.(shop|shop-settle)$", "the example's app is a placeholder and may write to its own root; the sidecar's root is read-only")],
    "CKV_K8S_25": [(r"redirect\.yaml ", "NET_ADMIN for the init container of `app.mode: redirect`, which is asked for: docs/packaging.md, transparent mode")],
    "CKV_K8S_29": [(r"(Pod\.shop\.egress-outgate-test|\.shop|\.shop-settle)$",
                    "no security context of the pod: it stands at each container, so that it holds whatever a pod says, which no include of a library can write")],
    "CKV_K8S_40": [(r"\.default\.(shop|shop-settle)$", "the example's app runs as user 1000, as many do; the sidecar as 65532")],
    "CKV_K8S_43": [(r"(Pod\.shop\.egress-outgate-test|\.shop|\.shop-settle|-injector)$", "a tag: which registry and digest is who installs it to say (`image.digest`)")],
    "CKV_DOCKER_2": [(r"Dockerfile\.redirect", "no health check: it makes rules and ends")],
    "CKV_DOCKER_7": [(r"Dockerfile(\.redirect)? ", "the bases are arguments, with tags in their defaults; a release pins them by digest")],
}
#: That it can find something: what nobody should write.
PLANTED = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "planted", "namespace": "shop"}, "spec": {"hostNetwork": True, "containers": [
    {"name": "a", "image": "a:latest", "securityContext": {"privileged": True, "capabilities": {"add": ["SYS_ADMIN"]}}}]}}


@functools.cache
def program():
    """What run.sh installs beside the tests."""
    folder = Path(os.environ.get("SCAN", "/nowhere"))
    begun = time.monotonic()
    while not (folder / ".complete").exists() and not (folder / ".failed").exists() and folder.exists() and time.monotonic() - begun < 300:
        time.sleep(0.5)
    if not (folder / ".complete").exists():
        missing("checkov is not here: renders are not scanned")
    return folder / "bin/checkov"


class Scan(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        checkov = program()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for case, files in all_renders():
                (folder / f"{case}.yaml").write_text(yaml.safe_dump_all(objects(files).values()))
            (folder / "planted.yaml").write_text(yaml.safe_dump(PLANTED))
            for file in ("Dockerfile", "Dockerfile.redirect"):
                (folder / file).write_text((ROOT / file).read_text())
            done = subprocess.run([checkov, "-d", folder, "--framework", "kubernetes", "dockerfile", "--skip-download", "--compact", "-o", "json"],
                                  capture_output=True, text=True, env=os.environ | {"LOG_LEVEL": "ERROR"})
        assert done.returncode in (0, 1), done.stderr[-2000:]
        reports = json.loads(done.stdout)
        cls.passed = sum(report["summary"]["passed"] for report in reports)
        assert not any(report["summary"]["parsing_errors"] for report in reports), reports
        cls.found = [(one["check_id"], f"{one['file_path'].lstrip('/')} {one['resource']}", one["check_name"])
                     for report in reports for one in report["results"]["failed_checks"]]

    def test_nothing_is_found_but_what_is_accepted(self):
        print(f"\n# checkov: {self.passed} passed, {len(self.found)} told of")
        used = set()
        for check, what, name in self.found:
            if what.startswith("planted.yaml"):
                continue
            matching = [(check, pattern) for pattern, _ in ACCEPTED.get(check, []) if re.search(pattern, what)]
            self.assertTrue(matching, f"{check} {name}: {what}")
            used.update(matching)
        self.assertEqual({(check, pattern) for check, entries in ACCEPTED.items() for pattern, _ in entries} - used, set(), "accepted, and not found")
        self.assertGreater(self.passed, 1000)

    def test_it_finds_what_is_planted(self):
        planted = {check for check, what, _ in self.found if what.startswith("planted.yaml")}
        self.assertLessEqual({"CKV_K8S_16", "CKV_K8S_19", "CKV_K8S_39", "CKV_K8S_20", "CKV_K8S_23"}, planted)


if __name__ == "__main__":
    unittest.main()
