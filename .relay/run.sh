#!/usr/bin/env bash
# Start or resume the long run of vidtok-t:  .relay/run.sh DATA FOLDER [KEY=VALUE...]
# DATA: the folder of the tar and csv files. FOLDER: where clips, code and the run live, outside the checkout.
set -euo pipefail
data=$(realpath "$1") folder=$(realpath -m "$2")
shift 2
here=$(cd "$(dirname "$0")/.." && pwd)
python=$(command -v python3)
mkdir -p "$folder/clips" "$folder/runs"

# Training and validation splits as folders of their own.
if [ ! -e "$folder/clips/done" ]; then
  for archive in "$data"/*.tar; do tar -xf "$archive" -C "$folder/clips"; done
  "$python" - "$data" "$folder/clips" <<'PY'
import csv, os, shutil, sys

data, clips = sys.argv[1:]
for name in ("droid", "grid", "rt1"):
    for row in csv.DictReader(open(f"{data}/{name}.csv")):
        os.makedirs(f"{clips}/{name}-{row['split']}", exist_ok=True)
        shutil.move(f"{clips}/{name}/{row['path']}", f"{clips}/{name}-{row['split']}")
PY
  touch "$folder/clips/done"
fi

# The code that the run began with, installed apart from any checkout.
if [ ! -e "$folder/commit" ]; then
  git -C "$here" rev-parse HEAD > "$folder/commit.new"
  git clone -q "$here" "$folder/code"
  "$python" -m pip install -q --no-deps --target "$folder/site" "$folder/code"
  mv "$folder/commit.new" "$folder/commit"
fi

# One core for the step and its loader; the averaged weights are written every ten minutes.
cd "$folder"
export PYTHONPATH=$folder/site OMP_NUM_THREADS=1
exec taskset -c "${CORE:-0}" "$python" -m vidtok train tokenizer experiment=vidtok-t \
  'data.root={clips/video-train:0.4,clips/video-train-hd:0.32,clips/droid-train:0.17,clips/grid-train:0.05,clips/rt1-train:0.06,clips/images/train:1.0}' \
  grow=null init=vidtok-t data.cache=store validation.root=clips/video-val-hd validation.clips=12 trainer.save_seconds=600 \
  run=runs/vidtok-t "$@"
