#!/usr/bin/env bash
# Sets up, builds and passes the tests: the release preset with everything, then the part without LibTorch under sanitizers.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
step() { echo "== $* ($(date +%H:%M:%S))"; }

step setup
bash cmake/setup.sh test
step build with sanitizers
cmake --preset asan >/dev/null
cmake --build --preset asan
step test with sanitizers
ctest --preset asan
step build
cmake --preset release >/dev/null
cmake --build --preset release
step test
ctest --preset release
