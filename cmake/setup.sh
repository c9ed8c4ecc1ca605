#!/usr/bin/env bash
# Installs what a fresh Debian 12 machine lacks. A satisfied step touches no network.
#   bash cmake/setup.sh [run | test | bench]
#     run    build tools, libraries, LibTorch, the quickstart's model and data (default)
#     test   also the Python peers that tests/interop compares with
#     bench  also Google Benchmark
# LATHE_CACHE      where everything but the Debian packages goes (default: the user's cache directory + /lathe)
# LATHE_PIP_ARGS   further arguments of pip, such as the CPU index of PyTorch's install guide
# CMAKE_PREFIX_PATH with a LibTorch of its own: mode run installs none; the peers of test and bench need the wheel
set -euo pipefail

mode=${1:-run}
case $mode in
  run | test | bench) ;;
  *) echo "setup: expected run, test or bench, got $mode" >&2; exit 2 ;;
esac
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${LATHE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lathe}
venv=$cache/venv
mkdir -p "$cache"

fail() {
  echo "setup: $*" >&2
  exit 1
}

install_debian_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  local as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  echo "setup: installing ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
    fail "apt-get could not install: ${missing[*]}"
}

make_venv() {
  [ -x "$venv/bin/pip" ] && return
  rm -rf "$venv"
  python3 -m venv "$venv" || fail "python3 -m venv failed: apt-get install python3-venv"
}

has_python_package() { # name version
  "$venv/bin/python" - "$1" "$2" <<'PYTHON' 2>/dev/null
import sys
from importlib.metadata import version
sys.exit(version(sys.argv[1]) != sys.argv[2])
PYTHON
}

install_torch() {
  has_python_package torch 2.13.0+cpu && return
  [ -n "${CMAKE_PREFIX_PATH:-}" ] && [ "$mode" = run ] && return
  echo "setup: installing LibTorch 2.13.0 (CPU)"
  # shellcheck disable=SC2086
  "$venv/bin/pip" install -q "torch==2.13.0+cpu" ${LATHE_PIP_ARGS:-} >"$cache/pip.log" 2>&1 ||
    fail "torch==2.13.0+cpu is not offered here: set LATHE_PIP_ARGS to the CPU index of PyTorch's install guide, or pass CMAKE_PREFIX_PATH (log: $cache/pip.log)"
}

# Alone: its dependency torchvision has no build for this torch, and its models do without.
install_timm() {
  has_python_package timm 1.0.31 && return
  echo "setup: installing the peer timm==1.0.31"
  # shellcheck disable=SC2086
  "$venv/bin/pip" install -q --no-deps timm==1.0.31 ${LATHE_PIP_ARGS:-} >"$cache/pip.log" 2>&1 ||
    fail "timm could not be installed (log: $cache/pip.log)"
}

install_peers() {
  local peers=(transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 safetensors==0.8.0 tokenizers==0.23.3 tensorboard==2.21.0 pillow==13.0.0
    pyyaml==6.0.4 bitsandbytes==0.50.2) wanted=() peer
  for peer in "${peers[@]}"; do
    has_python_package "${peer%%==*}" "${peer##*==}" || wanted+=("$peer")
  done
  install_timm
  [ ${#wanted[@]} -eq 0 ] && return
  echo "setup: installing the peers ${wanted[*]}"
  # torch is named again so that no peer pulls in another build of it.
  # shellcheck disable=SC2086
  "$venv/bin/pip" install -q "${wanted[@]}" "torch==2.13.0+cpu" ${LATHE_PIP_ARGS:-} >"$cache/pip.log" 2>&1 ||
    fail "the peers could not be installed (log: $cache/pip.log)"
}

packages=(g++ cmake ninja-build ccache python3 python3-venv libcli11-dev libyaml-cpp-dev nlohmann-json3-dev libpcre2-dev
  libutf8proc-dev libxxhash-dev libhwy-dev libdnnl-dev libpng-dev libturbojpeg0-dev zlib1g-dev libgtest-dev libgmock-dev)
[ "$mode" = test ] && packages+=(clang-format chromium)
[ "$mode" = bench ] && packages+=(libbenchmark-dev)
install_debian_packages "${packages[@]}"
make_venv
install_torch
[ "$mode" = run ] || install_peers
bash "$here/fetch_data.sh"
