#!/usr/bin/env bash
# Real clients through outgate: curl, stripe, openai, gRPC, Octokit and others, against origins of our own on loopback.
#
# Needs bash, Python 3.10 or later, curl and an outgate ($OUTGATE, by default the debug build). Packages go to a cache folder, keyed by what is
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
need() { # need "COMMAND that succeeds where it is here" PACKAGE...
  $1 &>/dev/null && return
  if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    { apt-get update -qq && apt-get install -qq -y --no-install-recommends "${@:2}"; } >&2 || true
    $1 &>/dev/null && return
  fi
  echo "SKIP \`$1\` fails here: what needs it is not tested"
  [[ ${CI:-} != true ]] || exit 1
  return 1
}

hash_of() { cat "$@" | sha256sum | cut -c1-16; }

need "curl --version" curl || exit 1
need "python3 -m ensurepip --version" python3 python3-venv || exit 1

# A folder counts only when its mark is there: an installation that was cut off is made again.
venv=$cache/venv-$(hash_of "$here/requirements.txt" <(python3 --version))
if [[ ! -e $venv/.complete ]]; then
  echo "installing Python packages into $venv" >&2
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
  touch "$venv/.complete"
fi

need "redis-server --version" redis-server || true

node=()
if need "node --version" nodejs && need "npm --version" npm; then
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
if unshare --map-root-user --net "$venv/bin/python" -B "$here/loopback.py" 2>/dev/null; then
  exec unshare --map-root-user --net "${run[@]}" --isolated "$@"
fi
echo "# no network namespaces here: what would need one is left out" >&2
exec "${run[@]}" "$@"
