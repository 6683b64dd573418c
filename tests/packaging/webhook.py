"""The injector as a process, with the arguments of its Deployment and files as the kubelet lays them out; and the API server's side of it."""

import base64
import copy
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import urllib.request
from pathlib import Path

import yaml

from engine import CHART, OUTGATE, objects, render
from pod import free_port, until


def injector_objects(values=None, files=None):
    """The chart with the injector on."""
    given = copy.deepcopy(values or {})
    given.setdefault("injector", {})["enabled"] = True
    return objects(files or render(CHART, given))


def named(found, kind):
    """The one object of a kind."""
    one, = [document for key, document in found.items() if key.startswith(f"{kind}/")]
    return one


def template_of(found):
    return found["ConfigMap/egress-outgate-injector"]["data"]["template.yaml"]


class Injector:
    """`found` are the objects of a render; `data` gives the volumes of the Deployment that the render does not bring."""

    def __init__(self, found, data=None, linger="0s"):
        self.found = found
        self.spec = found["Deployment/egress-outgate-injector"]["spec"]["template"]["spec"]
        self.container, = self.spec["containers"]
        self.folder = Path(tempfile.mkdtemp(prefix="injector-"))
        self.port, self.health = free_port(), free_port()
        self.versions = 0
        for volume in self.spec["volumes"]:
            if "secret" in volume:
                name = volume["secret"]["secretName"]
                content = (data or {}).get(name) or {
                    file: base64.b64decode(text).decode() for file, text in found[f"Secret/{name}"]["data"].items()}
            else:
                content = found[f"ConfigMap/{volume['configMap']['name']}"]["data"]
            self.swap(volume["name"], content)
        self.linger = linger

    def swap(self, volume, files):
        """A new version of a volume: a new folder, and one link that is renamed."""
        path = self.folder / volume
        self.versions += 1
        version = path / f"..2026_{self.versions}"
        version.mkdir(parents=True)
        for name, text in files.items():
            (version / name).write_text(text)
        draft = path / "..data_tmp"
        draft.symlink_to(version.name)
        os.replace(draft, path / "..data")
        for name in files:
            if not (path / name).is_symlink():
                (path / name).symlink_to(f"..data/{name}")

    def arguments(self):
        for argument in self.container["args"]:
            for mount in self.container["volumeMounts"]:
                argument = argument.replace(mount["mountPath"], str(self.folder / mount["name"]))
            argument = re.sub(r"^--listen=.*", f"--listen=127.0.0.1:{self.port}", argument)
            yield re.sub(r"^--health=.*", f"--health=127.0.0.1:{self.health}", argument)

    def __enter__(self):
        self.log = open(self.folder / "log", "wb")
        self.process = subprocess.Popen([OUTGATE, *self.arguments(), f"--linger={self.linger}"], stderr=self.log)
        try:
            until("the injector is ready", self.ready)
        except AssertionError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def text(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.health}{path}", timeout=5) as answer:
            return answer.read().decode()

    def ready(self):
        assert self.process.poll() is None, (self.folder / "log").read_text()
        try:
            return self.text("/readyz") == "ready\n"
        except OSError:
            return False

    def metric(self, name):
        return float(re.search(rf"^{re.escape(name)} (\S+)$", self.text("/metrics"), re.M)[1])

    def connection(self, roots=None):
        """As the API server connects: name, path and CA are those of the webhook's configuration."""
        client = named(self.found, "MutatingWebhookConfiguration")["webhooks"][0]["clientConfig"]
        service = client["service"]
        context = ssl.create_default_context(cadata=roots or base64.b64decode(client["caBundle"]).decode())
        return Connection(f"{service['name']}.{service['namespace']}.svc", self.port, context, service["path"])

    def mutate(self, pod, **request):
        with self.connection() as connection:
            return connection.mutate(pod, **request)


class Connection:
    """Kept open over requests."""

    def __init__(self, name, port, context, path):
        self.path, self.name = path, name
        self.http = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
        # To loopback, and with the service's name in the handshake. Head and body are sent apart, and neither waits for the other.
        stream = socket.create_connection(("127.0.0.1", port), 10)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.http.sock = context.wrap_socket(stream, server_hostname=name)
        self.certificate = self.http.sock.getpeercert()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.close()

    def post(self, body):
        self.http.request("POST", self.path, body, {"Host": self.name, "Content-Type": "application/json"})
        answer = self.http.getresponse()
        return answer.status, answer.read()

    def mutate(self, pod, **request):
        """The pod as the API server has it after the patch, and the response."""
        status, body = self.post(json.dumps(review(pod, **request)))
        assert status == 200, (status, body)
        answer = json.loads(body)
        assert (answer["apiVersion"], answer["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
        response = answer["response"]
        if "patch" not in response:
            return copy.deepcopy(pod), response
        assert response["patchType"] == "JSONPatch"
        return patched(pod, json.loads(base64.b64decode(response["patch"]))), response


def review(pod, **request):
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"}, "namespace": "shop", "operation": "CREATE",
        "object": pod, "oldObject": None, "dryRun": False} | request}


def patched(document, operations):
    """RFC 6902, in as much as comparisons make it. Lists are compared by place, so a container that moves is written anew."""
    document = copy.deepcopy(document)
    for operation in operations:
        *way, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
        parent = document
        for part in way:
            parent = parent[int(part)] if isinstance(parent, list) else parent[part]
        if operation["op"] == "add" and isinstance(parent, list):
            parent.insert(len(parent) if last == "-" else int(last), operation["value"])
        elif operation["op"] in ("add", "replace"):
            parent[int(last) if isinstance(parent, list) else last] = operation["value"]
        elif operation["op"] == "remove":
            del parent[int(last) if isinstance(parent, list) else last]
        else:
            raise AssertionError(operation)
    return document


def command_line(documents, template=None, check=True):
    """`outgate inject` over objects: the objects, and what it said."""
    with tempfile.TemporaryDirectory() as folder:
        more = []
        if template:
            path = Path(folder) / "template.yaml"
            path.write_text(template)
            more = ["--template", str(path)]
        done = subprocess.run([OUTGATE, "inject", "-f", "-", *more], input=yaml.safe_dump_all(documents), capture_output=True, text=True)
    if check:
        assert done.returncode == 0, done.stderr
        return list(yaml.safe_load_all(done.stdout)), done.stderr
    return done
