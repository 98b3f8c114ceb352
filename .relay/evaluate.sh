#!/usr/bin/env bash
# Evaluate a tokenizer by the protocol of the search:  .relay/evaluate.sh FOLDER [MODEL] [OUT] [--lpips FILE]...
# 50 clips of video-val at 128 pixels, 25 of video-val-hd at 256; MODEL: default, the run's averaged weights.
set -euo pipefail
folder=$1 model=${2:-$1/runs/vidtok-t/model} out=${3:-$1/evaluation}
shift $(( $# < 3 ? $# : 3 ))
mkdir -p "$out"
for protocol in "video-val 128 50" "video-val-hd 256 25"; do
  read -r clips size count <<< "$protocol"
  vidtok eval reconstruction "$folder/clips/$clips" --split val --size "$size" --clips "$count" --model "$model" \
    --json "$out/$clips-$size.json" --force "$@"
done
