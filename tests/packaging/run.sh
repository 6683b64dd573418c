#!/usr/bin/env bash
# Everything that is delivered beside the program: the charts, the rules and the dashboard, the image, the unit of systemd.
#
# Needs bash, Python 3.10 or later and an outgate ($OUTGATE, by default the debug build). Packages go to a cache folder, keyed by what is
# pinned. What cannot be tested on this machine is skipped visibly; with CI=true that is a failure. Arguments are passed on to unittest
# (`run.sh test_render`).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
export OUTGATE=${OUTGATE:-${CARGO_TARGET_DIR:-$root/target}/debug/outgate}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/outgate-tests

if [[ ! -x $OUTGATE ]]; then
  echo "no outgate at $OUTGATE: build it first (cargo build), or set OUTGATE" >&2
  exit 2
fi

# A tool that is missing is installed where we may. What is missing after that is skipped by the tests that need it.
want() { # want COMMAND PACKAGE...
  PATH=$PATH:/usr/sbin command -v "$1" &>/dev/null && return
  if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${@:2}"; } >&2 || true
  fi
}
want curl curl
want openssl openssl
want promtool prometheus
want systemd-analyze systemd
want buildah buildah
want podman podman runc catatonit
want runc runc
want /usr/lib/podman/netavark netavark
want /usr/lib/podman/aardvark-dns aardvark-dns
want ip iproute2
want nft nftables
want iptables iptables
want git git
want npm npm
want javac openjdk-17-jdk-headless

venv=$cache/packaging-$(cat "$here/requirements.txt" <(python3 --version) | sha256sum | cut -c1-16)
if [[ ! -e $venv/.complete ]]; then
  echo "installing Python packages into $venv" >&2
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
  touch "$venv/.complete"
fi

# checkov takes a while to come, so it comes while the first tests run; test_scan.py waits for it.
export SCAN=$cache/scan-$(cat "$here/requirements-scan.txt" <(python3 --version) | sha256sum | cut -c1-16)
if [[ ! -e $SCAN/.complete ]]; then
  echo "installing checkov into $SCAN" >&2
  rm -rf "$SCAN"
  mkdir -p "$SCAN"
  (
    if nice python3 -m venv "$SCAN" && nice "$SCAN/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$here/requirements-scan.txt"; then
      touch "$SCAN/.complete"
    else
      touch "$SCAN/.failed"
    fi
  ) </dev/null >&2 &
fi

# Programs that test_clients.py runs through outgate. Without them it skips those, or fails in CI.
programs=$cache/programs-$(sha256sum "$here/programs/package.json" | cut -c1-16)
if [[ ! -e $programs/.complete ]] && command -v npm >/dev/null; then
  echo "installing programs into $programs" >&2
  rm -rf "$programs"
  mkdir -p "$programs"
  cp "$here/programs/package.json" "$programs"
  if (cd "$programs" && npm install --silent --no-audit --no-fund --no-package-lock) >&2; then touch "$programs/.complete"; fi
fi
export PROGRAMS=$programs/node_modules/.bin

export PATH=$venv/bin:$PATH:/usr/sbin PYTHONDONTWRITEBYTECODE=1
cd "$here"
if [[ $# -gt 0 ]]; then exec python -m unittest -v "$@"; fi
exec python -m unittest discover -v -p 'test_*.py'
