#!/usr/bin/env bash
# One time-boxed job on a machine with a GPU:  .relay/gpu.sh PACKS INIT MINUTES OUT [KEY=VALUE...]
# PACKS: the archives of pack. INIT: a tokenizer's folder. OUT: weights and results, each file below 16 MB.
# Three quarters of MINUTES train at a constant rate, one quarter decays it; unpacking and evaluation come on top.
set -euo pipefail
packs=$(realpath "$1") init=$(realpath "$2") minutes=$3 out=$(realpath -m "$4")
shift 4
here=$(cd "$(dirname "$0")/.." && pwd)
work=${WORK:-$(mktemp -d)} device=$(python3 -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')
mkdir -p "$work/clips" "$out"
for pack in "$packs"/*.tar; do tar -xf "$pack" -C "$work/clips"; done
if ! python3 -c 'import vidtok' 2> /dev/null; then  # wheels that the machine lacks may lie beside the packs
  python3 -m pip install -q --no-index --find-links "$packs" --no-build-isolation --no-deps "$packs"/*.whl
  python3 -m pip install -q --no-build-isolation --no-deps "$here"
fi
constant=$(python3 -c "print($minutes * 0.75)") decay=$(python3 -c "print($minutes * 0.25)")
cd "$work"
common=(
  'data.root={clips/video-train:0.4,clips/video-train-hd:0.32,clips/droid-train:0.17,clips/grid-train:0.05,clips/rt1-train:0.06,clips/images/train:1.0}'
  data.cache=store data.batch_size=128 data.image_batch_size=512 trainer.ema_decay=0.9995
  trainer.workers="$(nproc)" trainer.save_seconds=60
)
train=(python3 -m vidtok train tokenizer experiment=vidtok-t "${common[@]}")
"${train[@]}" grow=null init="$init" trainer.max_minutes="$constant" run=constant "$@"
"${train[@]}" grow=null branch=constant trainer.max_minutes="$decay" run=decay "$@"
for run in constant decay; do
  python3 -c "import sys, torch, vidtok
vidtok.VideoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2], dtype=torch.float16)" "$run/model" "$out/$run"
  for protocol in "video-val 128" "video-val-hd 256"; do
    read -r clips size <<< "$protocol"
    python3 -m vidtok eval reconstruction "clips/$clips" --split val --size "$size" --model "$run/model" \
      --device "$device" --batch-size 8 --json "$out/$run-$size.json" --force || true  # short clips count as failed
  done
done
