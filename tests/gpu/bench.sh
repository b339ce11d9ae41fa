#!/usr/bin/env bash
# Everything that docs/benchmarks.md says of a GPU, in one run: tests/gpu/bench.sh KVFERRY [MODEL_DIR_TO_MAKE]
# KVFERRY is a binary built with `--features cuda`; python3 with Transformers is used where it is there.
set -euo pipefail
kvferry=${1:?usage: bench.sh KVFERRY [DIR]}
model=${2:-$(mktemp -d)/llama-3.2-1b-shape}
here=$(cd "$(dirname "$0")" && pwd)
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
bench() { echo "\$ kvferry bench $*"; "$kvferry" bench --device cuda --runs 20 --json "$@"; }
for tokens in 1024 4096 8192; do bench prefill --shape llama-3.2-1b --tokens "$tokens"; done
for batch in 1 8 64; do bench decode --shape llama-3.2-1b --tokens 1024 --batch "$batch"; done
for tokens in 1024 4096 8192; do
    bench codec --tokens "$tokens"
    bench codec --tokens "$tokens" --chunk 8192
done
python3 "$here/transformers_baseline.py" || echo "LEFT OUT: Transformers, which this machine's python3 lacks"
[ -e "$model/config.json" ] || "$kvferry" synth-model --shape llama-3.2-1b --plan --shards 2 --out "$model"
for gbps in 10 25 0; do bench e2e --model "$model" --tokens 4096 --link-gbps "$gbps"; done
