"""A pod as processes: the containers of a render, with their very arguments, environment and volumes, on loopback.

Volumes are laid out as the kubelet does it (`..data` for ConfigMaps and Secrets), and each container sees only what it mounts. A mount at
`/etc/outgate/policy` is `<folder>/containers/<container>/etc/outgate/policy` here, so these paths are rewritten in arguments and environment; nothing
else is. As root, each container runs as its own user and group.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from engine import OUTGATE, sidecar_of

ROOT_USER = os.getuid() == 0


GIVEN = set()


def free_port():
    """A port that nobody listens on, and that no connection gets for its own end before it is used: those are above 32767 on Linux."""
    while True:
        port = random.randrange(15000, 32768)
        if port in GIVEN:
            continue
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
        GIVEN.add(port)
        return port


def until(what, condition, limit=20.0):
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < limit, f"{what}: not within {limit} s"
        time.sleep(0.05)
    return time.monotonic() - begun


class Volumes:
    """The volumes of a pod, laid out as the kubelet does it. `data` gives ConfigMaps and Secrets by name: {name: {file: content}}."""

    def __init__(self, spec, data):
        self.spec, self.data = spec, data
        self.sidecar = sidecar_of(spec)
        self.folder = Path(tempfile.mkdtemp(prefix="pod-"))
        self.folder.chmod(0o755)
        self.swaps = 0
        self.in_memory = []
        for volume in spec["volumes"]:
            self.lay(volume)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        for path in self.in_memory:
            subprocess.run(["umount", "-l", path], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def volume(self, name):
        return self.folder / "volumes" / name

    def lay(self, volume):
        path = self.volume(volume["name"])
        path.mkdir(parents=True)
        if "emptyDir" in volume:
            if ROOT_USER and volume["emptyDir"].get("medium") == "Memory":
                size = volume["emptyDir"]["sizeLimit"].removesuffix("i")
                subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=True)
                self.in_memory.append(path)
            path.chmod(0o777)
        elif "configMap" in volume:
            self.swap(volume["name"], self.data[volume["configMap"]["name"]], 0o644)
        elif "secret" in volume:
            self.swap(volume["name"], self.data[volume["secret"]["secretName"]], volume["secret"]["defaultMode"])
        elif "projected" in volume:
            source = volume["projected"]["sources"][0]["serviceAccountToken"]
            self.swap(volume["name"], {source["path"]: f"token for {source['audience']}"}, volume["projected"]["defaultMode"])
        else:
            raise AssertionError(volume)

    def swap(self, name, files, mode=0o644):
        """A new version of a ConfigMap or Secret: a new folder, and one link that is renamed."""
        path = self.volume(name)
        self.swaps += 1
        version = path / f"..2026_{self.swaps}"
        version.mkdir()
        for file, content in files.items():
            (version / file).write_text(content)
            (version / file).chmod(mode)
        draft = path / "..data_tmp"
        draft.symlink_to(version.name)
        os.replace(draft, path / "..data")
        for file in files:
            if not (path / file).is_symlink():
                (path / file).symlink_to(f"..data/{file}")
        for old in path.iterdir():
            if old.name.startswith("..2026_") and old != version:
                shutil.rmtree(old)
            elif not old.name.startswith("..") and old.name not in files:
                old.unlink()


class Pod(Volumes):
    """See above."""

    def __init__(self, spec, data):
        super().__init__(spec, data)
        self.program = self.folder / "bin" / "outgate"
        self.program.parent.mkdir()
        shutil.copy(OUTGATE, self.program)
        self.program.chmod(0o755)
        self.running = []

    def close(self):
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.wait()
        super().close()

    def path(self, container, path):
        return self.folder / "containers" / container["name"] / path.lstrip("/")

    def mount(self, container):
        for mount in container.get("volumeMounts") or []:
            where = self.path(container, mount["mountPath"])
            where.parent.mkdir(parents=True, exist_ok=True)
            if not where.is_symlink():
                where.symlink_to(self.volume(mount["name"]))

    def rewritten(self, container, text):
        """With the mounts of this container where they are here."""
        text = text.replace("$(KUBERNETES_SERVICE_HOST)", "10.96.0.1").replace("/usr/local/bin/outgate", str(self.program))
        for mount in sorted((container.get("volumeMounts") or []), key=lambda m: -len(m["mountPath"])):
            text = text.replace(mount["mountPath"], str(self.path(container, mount["mountPath"])))
        return text

    def environment(self, container):
        return {e["name"]: self.rewritten(container, e["value"]) for e in container.get("env") or []}

    def run(self, container, command, **options):
        self.mount(container)
        context = container["securityContext"]
        user = {"user": context["runAsUser"], "group": context.get("runAsGroup", context["runAsUser"]),
                "extra_groups": []} if ROOT_USER else {}
        environment = {"PATH": os.environ["PATH"]} | self.environment(container)
        return subprocess.Popen(command, env=environment, cwd="/", **user, **options)

    def start(self):
        """The sidecar, up to its startup probe (native), or its postStart hook (classic)."""
        command = [str(self.program)] + [self.rewritten(self.sidecar, a) for a in self.sidecar["args"]]
        begun = time.monotonic()
        with open(self.folder / "sidecar.log", "ab") as log:
            process = self.run(self.sidecar, command, stdout=log, stderr=log)
        self.running.append(process)
        self.process = process
        hook = self.sidecar.get("lifecycle", {}).get("postStart")
        if hook:
            command = [self.rewritten(self.sidecar, a) for a in hook["exec"]["command"]]
            # The hook itself gives up after a minute; then the log tells why.
            assert subprocess.run(command, timeout=75).returncode == 0, self.log()
        else:
            until("the startup probe", lambda: self.probe("startupProbe") == 200 or process.poll() is not None)
        assert process.poll() is None, self.log()
        return time.monotonic() - begun

    def probe(self, kind):
        ask = self.sidecar[kind]["httpGet"]
        port = next(p["containerPort"] for p in self.sidecar["ports"] if p["name"] == ask["port"])
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://127.0.0.1:{port}{ask['path']}", timeout=2) as got:
                return got.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None

    def log(self):
        return (self.folder / "sidecar.log").read_text()

    def app(self):
        return self.spec["containers"][-1]

    def in_app(self, *command, check=True):
        """Runs a command as the app: its user, its environment, its mounts."""
        process = self.run(self.app(), [self.rewritten(self.app(), c) for c in command], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True)
        out, error = process.communicate(timeout=60)
        assert not check or process.returncode == 0, f"{command}: {out}{error}\n{self.log()}"
        return out if check else process.returncode

    def inside(self, container, script):
        """A shell in a container: its user, its environment, a root of its own with the system's programs, processes of its own, and of the
        pod's volumes those that it mounts, at the very places. The network is the pod's, as ever. Wants root."""
        context = container["securityContext"]
        user, group = context["runAsUser"], context.get("runAsGroup", context["runAsUser"])
        lines = ["set -e", "mount --make-rprivate /", 'root=$(mktemp -d)', 'mount -t tmpfs none "$root"', 'chmod 755 "$root"']
        for name in ("bin", "sbin", "lib", "lib64"):
            lines.append(f'if [ -L /{name} ]; then cp -P /{name} "$root/{name}"; elif [ -d /{name} ]; then mkdir "$root/{name}"; '
                         f'mount --rbind /{name} "$root/{name}"; fi')
        lines += ['mkdir "$root/usr" "$root/proc" "$root/dev" "$root/tmp" "$root/etc"', 'mount --bind /usr "$root/usr"',
                  'mount -o remount,bind,ro "$root/usr"', 'mount -t proc none "$root/proc"', 'chmod 1777 "$root/tmp"',
                  'touch "$root/dev/null"', 'mount --bind /dev/null "$root/dev/null"', 'echo "127.0.0.1 localhost" > "$root/etc/hosts"']
        for mount in container.get("volumeMounts") or []:
            source, target = self.volume(mount["name"]), mount["mountPath"]
            if "subPath" in mount:
                source = source / mount["subPath"]
                lines += [f'mkdir -p "$root{os.path.dirname(target)}"', f'[ -e "$root{target}" ] || touch "$root{target}"']
            else:
                lines.append(f'mkdir -p "$root{target}"')
            lines.append(f'mount --bind "{source}" "$root{target}"')
            if mount.get("readOnly"):
                lines.append(f'mount -o remount,bind,ro "$root{target}"')
        lines.append(f'exec chroot --userspec={user}:{group} --groups= "$root" '
                     'setpriv --no-new-privs --bounding-set=-all --inh-caps=-all sh -c "$APP"')
        environment = {e["name"]: e["value"].replace("$(KUBERNETES_SERVICE_HOST)", "10.96.0.1") for e in container.get("env") or []}
        environment |= {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "APP": script}
        return subprocess.run(["unshare", "--mount", "--pid", "--fork", "sh", "-c", "\n".join(lines)], env=environment,
                              capture_output=True, text=True, timeout=60)

    def terminate(self, limit=10.0):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(limit)
