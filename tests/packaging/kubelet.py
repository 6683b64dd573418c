"""A kubelet small enough to be read: a pod of a render as containers of podman, in a network namespace of their own.

Of the render it takes what a kubelet takes: order, probes, hooks, arguments, variables, users, capabilities, seccomp, read-only roots, memory limits,
volumes and how they are mounted. Paths and ports are those of the render, to the letter. The sidecar's image is the one that buildah built; the
app's is a stand-in with the programs of this machine and `/app/settle`.

What a kubelet does with native sidecars (KEP-753) is done here by hand, because podman knows nothing of them: started in the order of the
init containers, each up to its startup probe; started again when they end; told to end when the last other container has, the last one first.
"""

import ctypes
import functools
import http.client
import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from image import REDIRECT_TAG, TAG, Image
from pod import Volumes, until
from test_pod import HOST

APP = "localhost/outgate-packaging-app"
CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)


#: The stand-in for the app's own program of the Job: it settles, and ends as it is told.
SETTLE = f"#!/bin/sh\ncurl -sS --fail --max-time 20 https://{HOST}/v1/settle || exit 9\nexit ${{SETTLE_CODE:-0}}\n"


@functools.cache
def app_image(image):
    """What apps run here, built once. `/usr` is this machine's, mounted into the container."""
    tree = image.folder / "app"
    for folder in ("usr", "etc", "tmp", "app", "proc", "sys", "dev", "var/run"):
        (tree / folder).mkdir(parents=True, exist_ok=True)
    (tree / "tmp").chmod(0o1777)
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / name).symlink_to(f"usr/{name}")
    program = tree / "app/settle"
    program.write_text(SETTLE)
    program.chmod(0o755)
    image.base(APP, tree)


class Kubelet(Volumes):
    """`data` gives ConfigMaps and Secrets by name: {name: {file: content}}."""

    def __init__(self, image: Image, spec, data):
        super().__init__(spec, data)
        self.image = image
        self.network = f"og-kubelet-{os.getpid()}-{time.monotonic_ns()}"
        self.shares = spec.get("shareProcessNamespace", False)
        self.containers, self.events = {}, []
        # What a container runs in the place of the command that the render has.
        self.instead = {}
        try:
            self.connect()
        except BaseException:
            self.close()
            raise

    def connect(self):
        subprocess.run(["ip", "netns", "add", self.network], check=True)
        # A way out that leads nowhere, so that connections to other hosts begin at all.
        for words in ("link set lo up", "link add eth0 type veth peer name nowhere", "addr add 198.51.100.2/24 dev eth0", "link set eth0 up",
                      "link set nowhere up", "route add default dev eth0"):
            subprocess.run(["ip", "-n", self.network, *words.split()], check=True)

    def close(self):
        # The last first: who shares the processes of another goes before it.
        for container in reversed(self.containers.values()):
            self.image.podman("rm", "-f", "-t", "0", container, check=False)
        subprocess.run(["ip", "netns", "del", self.network], check=False)
        super().close()

    def within(self, work):
        """Runs something with the pod's network, which is a thread's own: sockets that are made there stay there."""
        def enter():
            with open(f"/run/netns/{self.network}") as file:
                if LIBC.setns(file.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return work()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(enter).result()

    def get(self, port, path):
        """Status and text, as a kubelet or a scraper asks; no status where nobody answers."""
        def ask():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
            except OSError as error:
                return None, str(error)
            finally:
                connection.close()

        return self.within(ask)

    def options(self, spec):
        context, pod = spec.get("securityContext") or {}, self.spec.get("securityContext") or {}
        user, group = context.get("runAsUser", pod.get("runAsUser")), context.get("runAsGroup", pod.get("runAsGroup", 0))
        capabilities = context.get("capabilities") or {}
        yield f"--user={user}:{group}"
        yield from (f"--cap-drop={one}" for one in capabilities.get("drop") or [])
        yield from (f"--cap-add={one}" for one in capabilities.get("add") or [])
        if context.get("allowPrivilegeEscalation") is False:
            yield "--security-opt=no-new-privileges"
        if context.get("readOnlyRootFilesystem"):
            yield from ("--read-only", "--read-only-tmpfs=false")
        memory = ((spec.get("resources") or {}).get("limits") or {}).get("memory")
        if memory:
            yield f"--memory={memory.removesuffix('i').lower()}"
        for one in spec.get("env") or []:
            yield f"--env={one['name']}={one['value'].replace('$(KUBERNETES_SERVICE_HOST)', '10.96.0.1')}"
        for mount in spec.get("volumeMounts") or []:
            yield f"--volume={self.volume(mount['name'])}:{mount['mountPath']}:{'ro' if mount.get('readOnly') else 'rw'}"

    def run(self, spec):
        """A container of the pod, running. One of the same name that has ended makes place."""
        name = spec["name"]
        if name in self.containers:
            self.image.podman("rm", "-f", "-t", "0", self.containers.pop(name), check=False)
        # An app's image, which is not here, is the stand-in.
        ours = {"outgate": TAG, "outgate-redirect": REDIRECT_TAG}.get(spec["image"].split(":")[0])
        image = [ours] if ours else ["--volume=/usr:/usr:ro", APP]
        command, arguments = self.instead.get(name, spec.get("command")), spec.get("args") or []
        if name in self.instead:
            arguments = []
        options = ["--entrypoint", json.dumps(command)] if command else []
        if self.shares and self.containers:
            options.append(f"--pid=container:{next(iter(self.containers.values()))}")
        done = self.image.podman("run", "-d", f"--network=ns:/run/netns/{self.network}", *options, *self.options(spec), *image, *arguments)
        self.containers[name] = done.stdout.strip()
        self.events.append(f"started {name}")

    def state(self, name):
        return json.loads(self.image.podman("inspect", "-f", "{{json .State}}", self.containers[name]).stdout)

    def running(self, name):
        return self.state(name)["Running"]

    def ended(self, name, limit=20.0):
        """Its exit code, once it has ended."""
        until(f"{name} ends", lambda: not self.running(name), limit)
        self.events.append(f"ended {name}")
        return self.state(name)["ExitCode"]

    def logs(self, name):
        done = self.image.podman("logs", self.containers[name], check=False)
        return done.stdout + done.stderr

    def probe(self, spec, kind):
        ask = spec[kind]["httpGet"]
        port = next(p["containerPort"] for p in spec["ports"] if p["name"] == ask["port"])
        return self.get(port, ask["path"])[0]

    def began(self, spec):
        """A container up to where the next one may start."""
        self.run(spec)
        name = spec["name"]
        if spec.get("startupProbe") and spec.get("restartPolicy") == "Always":
            probe = spec["startupProbe"]
            until(f"the startup probe of {name}", lambda: self.probe(spec, "startupProbe") == 200 or not self.running(name),
                  probe["periodSeconds"] * probe["failureThreshold"])
            assert self.running(name), self.logs(name)
            self.events.append(f"probed {name}")
        hook = (spec.get("lifecycle") or {}).get("postStart")
        if hook:
            self.image.podman("exec", self.containers[name], *hook["exec"]["command"])
            self.events.append(f"hooked {name}")

    def start(self):
        for spec in self.spec.get("initContainers") or []:
            self.began(spec)
            if spec.get("restartPolicy") != "Always":
                code = self.ended(spec["name"])
                assert code == 0, f"init container {spec['name']} ended with {code}: {self.logs(spec['name'])}"
        for spec in self.spec["containers"]:
            self.began(spec)

    def sidecars(self):
        """Native ones."""
        return [c for c in self.spec.get("initContainers") or [] if c.get("restartPolicy") == "Always"]

    def tell(self, name):
        self.image.podman("kill", "-s", "TERM", self.containers[name], check=False)
        self.events.append(f"told {name}")

    def complete(self):
        """A Job's pod: waits for its containers, then ends the native sidecars. Exit codes by name."""
        codes = {spec["name"]: self.ended(spec["name"]) for spec in reversed(self.spec["containers"])}
        return codes | self.end_sidecars()

    def end_sidecars(self):
        codes = {}
        for spec in reversed(self.sidecars()):
            self.tell(spec["name"])
            codes[spec["name"]] = self.ended(spec["name"], 30)
        return codes

    def delete(self):
        """The pod is deleted: all containers are told at once, the native sidecars when those have ended."""
        for spec in self.spec["containers"]:
            self.tell(spec["name"])
        codes = {spec["name"]: self.ended(spec["name"], 30) for spec in reversed(self.spec["containers"])}
        return codes | self.end_sidecars()

    def execute(self, name, script, check=True):
        """A shell in a container, as its user."""
        return self.image.podman("exec", self.containers[name], "/bin/sh", "-c", script, check=check)

    def process(self, name):
        """The container's first process, as this machine sees it."""
        pid = self.state(name)["Pid"]
        text = Path(f"/proc/{pid}/status").read_text()
        return pid, {line.split(":")[0]: line.split(":", 1)[1].split() for line in text.splitlines()}


def shell(script):
    return ["/bin/sh", "-c", script]
