#!/usr/bin/env bash
# The main job, from a fresh machine to a fine-tuned model: sets up, builds, trains a spam filter and measures it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
cache=${LATHE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lathe}
bash cmake/setup.sh run
cmake --preset release >/dev/null
cmake --build --preset release --target lathe lathe-torch

lathe=build/release/bin/lathe
run=runs/quickstart
number=1
while [ -e "$run" ]; do  # each run gets a directory of its own
  number=$((number + 1))
  run=runs/quickstart-$number
done
"$lathe" validate quickstart --data
"$lathe" doctor >/dev/null  # measures this machine's speed, for the plan's time
"$lathe" plan quickstart
"$lathe" train quickstart output.dir="$run"
result=$("$lathe" eval "$run" data.eval="$cache/data/spam-assassin/test.jsonl" --json)
read -r accuracy f1 < <(python3 -c 'import json, sys; r = json.loads(sys.argv[1]); print("%.4f" % r["accuracy"], "%.4f" % r["f1"])' "$result")

cat <<END

Held-out e-mails (never seen in training): accuracy $accuracy, F1 $f1
The adapter is in $run/adapter (PEFT's format)

Try next:
  $lathe predict --model $cache/models/all-MiniLM-L6-v2 --adapter $run/adapter --text "You have won a free prize, click here"
  $lathe cp text/classify_jsonl my.yaml
  $lathe inspect $run
F1 $f1
END
