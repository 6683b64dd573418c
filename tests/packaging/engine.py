"""The Helm engine, the charts of this repository, and what their renders hold."""

import json
import os
import shutil
import tempfile
import unittest
from pathlib import Path

import yaml
from helm_python import _native
from helm_python.chart import Chart

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm"
LIBRARY = CHART / "charts" / "outgate-lib"
APP = ROOT / "examples" / "app-chart"
GOLDEN = Path(__file__).parent / "golden"
KUBES = ["1.29", "1.33", "1.37"]
OUTGATE = os.environ["OUTGATE"]


def missing(what):
    """A skip that CI does not accept."""
    if os.environ.get("CI") == "true":
        raise AssertionError(f"in CI nothing is skipped: {what}")
    print(f"SKIP {what}")
    raise unittest.SkipTest(what)


def values_of(case):
    return yaml.safe_load((CHART / "ci" / f"{case}-values.yaml").read_text()) or {}


CASES = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))


def render(chart, values, kube="1.33", name="egress", namespace="shop"):
    """The files of a render, by path; those that came out empty are left out."""
    with Chart.load(chart) as loaded:
        options = {"name": name, "namespace": namespace, "kube_version": f"v{kube}.0"}
        files = json.loads(_native.call_string("helm_render", loaded._raw(), json.dumps(values), json.dumps(options)))
    return {path: text for path, text in files.items() if text.strip()}


def objects(files):
    """The objects of a render, by `Kind/name`."""
    found = {}
    for path, text in files.items():
        if path.endswith("NOTES.txt"):
            continue
        for document in yaml.safe_load_all(text):
            if document:
                key = f"{document['kind']}/{document['metadata']['name']}"
                assert key not in found, f"{key} twice"
                found[key] = document
    return found


class AppChart:
    """The example's chart with its dependency in place, as `helm dependency build` would put it there."""

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "shop"
        shutil.copytree(APP, path)
        shutil.copytree(LIBRARY, path / "charts" / "outgate-lib")
        return path

    def __exit__(self, *_):
        self.folder.cleanup()


def render_app(values=None, kube="1.33"):
    with AppChart() as path:
        return render(path, values or {}, kube, name="shop")


def pod_spec(document):
    """The pod in an object, or None."""
    if document["kind"] == "Pod":
        return document["spec"]
    if document["kind"] in ("Deployment", "Job", "StatefulSet", "DaemonSet"):
        return document["spec"]["template"]["spec"]
    return None


def sidecar_of(spec):
    found = [c for c in spec.get("initContainers") or [] if c["name"] == "outgate"]
    found += [c for c in spec["containers"] if c["name"] == "outgate"]
    assert len(found) == 1, [c["name"] for c in found]
    return found[0]
