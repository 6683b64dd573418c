#!/usr/bin/env bash
# Real clients through outgate: curl, stripe, openai, gRPC, Octokit and others, against origins of our own on loopback.
#
# Needs bash, python3 and an outgate ($OUTGATE, by default the debug build). Packages go to a cache folder, keyed by what is
# pinned; nothing is installed beside the sources. Arguments are passed on to driver.py (`--only stripe`).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
outgate=${OUTGATE:-${CARGO_TARGET_DIR:-$here/../../target}/debug/outgate}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/outgate-tests

if [[ ! -x $outgate ]]; then
  echo "no outgate at $outgate: build it first (cargo build), or set OUTGATE" >&2
  exit 2
fi

# A tool that is missing is installed where we may; else its clients are skipped visibly, which CI does not accept.
need() { # need COMMAND PACKAGE...
  command -v "$1" >/dev/null && return 0
  if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    { apt-get update -qq && apt-get install -qq -y --no-install-recommends "${@:2}"; } >&2 || true
    command -v "$1" >/dev/null && return 0
  fi
  echo "SKIP $1 is not here: what needs it is not tested"
  [[ ${CI:-} != true ]] || exit 1
  return 1
}

# A folder counts only when its mark is there: an installation that was cut off is made again.
hash_of() { cat "$@" | sha256sum | cut -c1-16; }

need curl curl || exit 1

venv=$cache/venv-$(hash_of "$here/requirements.txt" <(python3 --version))
if [[ ! -e $venv/.complete ]]; then
  echo "installing Python packages into $venv" >&2
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
  touch "$venv/.complete"
fi

node=()
if need node nodejs npm && need npm npm; then
  packages=$cache/node-$(hash_of "$here/package.json" "$here/package-lock.json" <(node --version))
  if [[ ! -e $packages/.complete ]]; then
    echo "installing Node packages into $packages" >&2
    rm -rf "$packages"
    mkdir -p "$packages"
    cp "$here/package.json" "$here/package-lock.json" "$packages"
    (cd "$packages" && npm ci --silent --omit=dev --no-audit --no-fund --ignore-scripts)
    touch "$packages/.complete"
  fi
  node=(--node-modules "$packages/node_modules")
fi

# In a network namespace of its own no client can reach the real provider, whatever it makes of the environment.
run=("$venv/bin/python" -B "$here/driver.py" --outgate "$outgate" "${node[@]}")
if unshare --map-root-user --net true 2>/dev/null; then
  exec unshare --map-root-user --net "${run[@]}" --isolated "$@"
fi
echo "# no network namespaces here: what would need one is left out" >&2
exec "${run[@]}" "$@"
