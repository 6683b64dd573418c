"""Builds the image by buildah, and makes what is needed to run it by podman, on a machine without access to an image registry.

The bases are stand-ins: the runtime is unpacked from the Debian packages that the distroless image is made of;
the builder is a busybox whose `cargo` hands out the program that was built outside, after it looked that it was called as it should and
that the sources are there. So every line of the Dockerfile runs but the compiler; and of Dockerfile.redirect but the download.
"""

import atexit
import functools
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from engine import OUTGATE, ROOT, missing

TAG = "localhost/outgate-packaging-test"
REDIRECT_TAG = "localhost/outgate-packaging-test-redirect"

#: What distroless/base-nossl-debian12 holds.
RUNTIME = ["base-files", "netbase", "tzdata", "libc6", "ca-certificates"]

#: What Dockerfile.redirect is built on, of debian:bookworm-slim, and what it installs.
REDIRECT_BASE = ["base-files", "libc6", "libgcc-s1"]
NFTABLES = ["nftables", "libnftables1", "libnftnl11", "libmnl0", "libjansson4", "libgmp10", "libxtables12", "libedit2", "libbsd0", "libmd0", "libtinfo6"]

#: It installs what was unpacked outside, where it is called as it should be.
APT_GET = """#!/bin/sh
set -e
case "$*" in
  update) mkdir -p /var/lib/apt/lists && touch /var/lib/apt/lists/updated ;;
  "install -y --no-install-recommends nftables") [ -f /var/lib/apt/lists/updated ] && cp -a /prebuilt/. / ;;
  *) echo "apt-get $*" >&2; exit 1 ;;
esac
"""

CARGO = """#!/bin/sh
set -e
[ "$*" = "build --locked --release --bin outgate" ] || { echo "cargo $*" >&2; exit 1; }
for file in Cargo.toml Cargo.lock .cargo/config.toml src/main.rs benches/proxy/main.rs README.md INCLUDED; do [ -f $file ] || { echo "no $file" >&2; exit 1; }; done
for file in .git .outgate target/debug tests docs helm proxy.yaml .env; do [ ! -e $file ] || { echo "$file is in the context" >&2; exit 1; }; done
mkdir -p target/release
cp /prebuilt/outgate target/release/outgate
"""

#: What a file of Rust names: relative to itself, or to the manifest, and then perhaps all files of a kind in one folder.
INCLUDE = re.compile(r"""include(?:_str|_bytes)?!\(\s*(?:"(?P<beside>[^"]+)"\s*|concat!\(\s*env!\("CARGO_MANIFEST_DIR"\),\s*(?P<parts>[^()]+)\))\s*\)""")


def included():
    """The files that the compiler reads besides the modules, from the root."""
    found = set()
    for source in sorted((ROOT / "src").rglob("*.rs")):
        text = source.read_text()
        matches = list(INCLUDE.finditer(text))
        assert len(matches) == len(re.findall(r"\binclude(?:_str|_bytes)?!", text)), f"{source}: an include of another form"
        for match in matches:
            if match["beside"]:
                found.add(os.path.normpath(source.parent / match["beside"]))
            else:
                pattern = "".join(part[1:-1] if part.startswith('"') else "*" for part in re.split(r",\s*", match["parts"].strip()))
                here = [str(path) for path in ROOT.glob(pattern.lstrip("/"))]
                assert here, f"{source}: nothing is like {pattern}"
                found.update(here)
    return sorted(str(Path(path).relative_to(ROOT)) for path in found)


CONTAINERS_CONF = """[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
init_path = "/usr/bin/catatonit"
"""
#: What makes networks of containers, and names in them; the example of Compose wants it, and nothing else here.
NETAVARK = Path("/usr/lib/podman/netavark")
NETWORKS = """[network]
network_backend = "netavark"
network_config_dir = "{}/networks"
"""


def available():
    """Whether this machine can build and run images at all; if not, why."""
    if os.getuid() != 0:
        return "not root: no image is built here"
    for program in ("buildah", "podman", "runc", "apt-get", "dpkg-deb"):
        if not shutil.which(program):
            return f"{program} is not here: no image is built"
    return None


class Image:
    def __init__(self):
        why = available()
        if why:
            missing(why)
        self.folder = Path(tempfile.mkdtemp(prefix="image-"))
        conf = self.folder / "containers.conf"
        conf.write_text(CONTAINERS_CONF + (NETWORKS.format(self.folder) if NETAVARK.exists() else ""))
        policy = self.folder / "policy.json"
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        storage = self.folder / "storage.conf"
        storage.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{self.folder}/graph"\nrunroot = "{self.folder}/run"\n')
        self.environment = os.environ | {"BUILDAH_ISOLATION": "chroot", "CONTAINERS_CONF": str(conf),
                                         "CONTAINERS_STORAGE_CONF": str(storage)}
        self.policy = policy
        self.built = False

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, *command, check=True, **options):
        done = subprocess.run([str(one) for one in command], capture_output=True, text=True, env=self.environment, **options)
        assert not check or done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
        return done

    def debian(self, names, into):
        folder = self.folder / "packages"
        folder.mkdir(exist_ok=True)
        self.call("apt-get", "download", "-qq", *names, cwd=folder)
        for name in names:
            self.call("dpkg-deb", "-x", next(folder.glob(f"{name}_*.deb")), into)

    def base(self, name, tree, user=None):
        """An image of one folder."""
        container = self.call("buildah", "from", "--signature-policy", self.policy, "scratch").stdout.strip()
        self.call("buildah", "copy", "-q", container, tree, "/")
        self.call("buildah", "commit", "-q", "--signature-policy", self.policy, "--rm", container, name)

    def bases(self):
        runtime, builder = self.folder / "runtime", self.folder / "builder"
        runtime.mkdir()
        self.debian(RUNTIME, runtime)
        certificates = sorted((runtime / "usr/share/ca-certificates/mozilla").glob("*.crt"))
        (runtime / "etc/ssl/certs").mkdir(parents=True, exist_ok=True)
        (runtime / "etc/ssl/certs/ca-certificates.crt").write_text("".join(c.read_text() for c in certificates))
        for unneeded in ("usr/share/doc", "usr/share/man", "usr/share/ca-certificates", "usr/share/lintian", "usr/sbin", "usr/bin", "var"):
            shutil.rmtree(runtime / unneeded, ignore_errors=True)
        (runtime / "etc/passwd").write_text("root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n")
        (runtime / "tmp").mkdir(exist_ok=True)
        (runtime / "tmp").chmod(0o1777)
        self.base("localhost/stand-in-runtime", runtime)

        (builder / "bin").mkdir(parents=True)
        unpacked = self.folder / "busybox"
        unpacked.mkdir()
        self.debian(["busybox-static"], unpacked)
        shutil.copy(unpacked / "bin/busybox", builder / "bin/busybox")
        # What the image takes from the toolchain's.
        compiler = self.folder / "compiler"
        compiler.mkdir()
        self.debian(["libgcc-s1"], compiler)
        library = next(compiler.rglob("libgcc_s.so.1"))
        (builder / "usr/lib/x86_64-linux-gnu").mkdir(parents=True)
        shutil.copy(library, builder / "usr/lib/x86_64-linux-gnu/libgcc_s.so.1")
        for name in ("sh", "cp", "mkdir", "["):
            (builder / "bin" / name).symlink_to("busybox")
        cargo = builder / "usr/local/cargo/bin/cargo"
        cargo.parent.mkdir(parents=True)
        cargo.write_text(CARGO.replace("INCLUDED", " ".join(included())))
        cargo.chmod(0o755)
        (builder / "usr/local/bin").mkdir(parents=True)
        (builder / "usr/local/bin/cargo").symlink_to("/usr/local/cargo/bin/cargo")
        (builder / "prebuilt").mkdir()
        program = builder / "prebuilt/outgate"
        shutil.copy(OUTGATE, program)
        self.call("strip", program)
        (builder / "tmp").mkdir()
        (builder / "tmp").chmod(0o1777)
        self.base("localhost/stand-in-builder", builder)

    def build(self):
        """The context is the repository, with what must not get into an image planted beside the sources."""
        if self.built:
            return
        self.bases()
        context = self.folder / "context"
        keep = shutil.ignore_patterns("target", ".git", "node_modules")
        shutil.copytree(ROOT, context, ignore=keep, symlinks=True)
        for planted in (".outgate/ca/ca.key", ".env", "target/debug/x", ".git/config"):
            path = context / planted
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("SECRET-CANARY")
        self.call("buildah", "build", "--format", "docker", "--signature-policy", self.policy, "--pull-never",
                  "--build-arg", "RUST_IMAGE=localhost/stand-in-builder", "--build-arg", "RUNTIME_IMAGE=localhost/stand-in-runtime",
                  "--build-arg", "REVISION=0123abc", "-t", TAG, context)
        self.built = True

    def build_redirect(self):
        """Dockerfile.redirect, with the image above and a stand-in for Debian, whose `apt-get` hands out the packages."""
        self.build()
        base = self.folder / "redirect-base"
        prebuilt = base / "prebuilt"
        prebuilt.mkdir(parents=True)
        self.debian(REDIRECT_BASE, base)
        self.debian(NFTABLES, prebuilt)
        shutil.rmtree(prebuilt / "usr/share", ignore_errors=True)
        (base / "bin").mkdir(exist_ok=True)
        shutil.copy(self.folder / "busybox/bin/busybox", base / "bin/busybox")
        for name in ("sh", "cp", "mkdir", "touch", "rm", "["):
            (base / "bin" / name).symlink_to("busybox")
        (base / "usr/bin").mkdir(parents=True, exist_ok=True)
        (base / "usr/bin/apt-get").write_text(APT_GET)
        (base / "usr/bin/apt-get").chmod(0o755)
        self.base("localhost/stand-in-debian", base)
        self.call("buildah", "build", "--format", "docker", "--signature-policy", self.policy, "--pull-never", "-f", ROOT / "Dockerfile.redirect",
                  "--build-arg", f"OUTGATE_IMAGE={TAG}", "--build-arg", "BASE_IMAGE=localhost/stand-in-debian", "-t", REDIRECT_TAG, self.folder / "context")

    def inspect(self, tag=TAG):
        self.build()
        return json.loads(self.call("buildah", "inspect", "--type", "image", tag).stdout)

    def files(self, tag=TAG):
        """Names, modes and sizes of what is in the image."""
        self.build()
        container = self.call("buildah", "from", "--pull-never", "--signature-policy", self.policy, tag).stdout.strip()
        root = Path(self.call("buildah", "mount", container).stdout.strip())
        found = {str(p.relative_to(root)): p.lstat() for p in root.rglob("*") if not p.is_dir()}
        self.call("buildah", "umount", container)
        self.call("buildah", "rm", container)
        return found

    #: As the chart has it.
    TIGHT = ["--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL", "--security-opt=no-new-privileges"]

    def podman(self, *arguments, **options):
        return self.call("podman", *arguments, **options)


@functools.cache
def shared():
    """The image, built once for all tests of a run."""
    image = Image()
    atexit.register(image.close)
    image.build()
    return image


@functools.cache
def shared_redirect():
    """The same with the image of Dockerfile.redirect beside it."""
    image = shared()
    image.build_redirect()
    return image
