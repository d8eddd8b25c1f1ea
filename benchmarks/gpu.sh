#!/usr/bin/env bash
# What is measured on a GPU, in at most eight minutes: training, the demo's training, sampling, lean execution.
#
#     benchmarks/gpu.sh RESULTS                 # a folder; each part writes a file there as it goes
#     QUICK=1 benchmarks/gpu.sh RESULTS         # tiny networks, to try the script where there is no GPU
#     python -m pytest -n 8                     # and the tests, by themselves
#
# Each part has a time limit of its own, and one that fails or runs out of it does not end the others: parts.txt says so.
set -u
cd "$(dirname "$0")/.."
results=${1:?give a folder for the results}
mkdir -p "$results"
results=$(cd "$results" && pwd)
runs=$(mktemp -d)
trap 'rm -rf "$runs"' EXIT

part() {  # NAME SECONDS COMMAND...
    local name=$1 limit=$2 started=$SECONDS
    shift 2
    timeout --kill-after 5 "$limit" "$@" >"$results/$name.txt" 2>"$results/$name.err"
    local status=$?
    echo "$name: exit $status after $((SECONDS - started)) s" | tee -a "$results/parts.txt"
}

if [ -n "${QUICK:-}" ]; then
    architecture=two_levels batch=4 steps=6 demo=20 lean=(--architecture tiny --batch_sizes 1)
else
    architecture=cifar10 batch=128 steps=40 demo=2000 lean=(--batch_sizes 16)
fi

# Training: images/s of recipe saturated, by how its step is compiled, beside the plain loop.
train() {  # HOW SECONDS
    part "train_bf16_$1" "$2" python benchmarks/throughput.py --architecture "$architecture" --batch_size "$batch" \
        --steps "$steps" --rows saturated+bf16 --compile "$1"
}
train off 40
train cudagraphs 60
part demo_training 40 ddpm-redistill distill --output_dir "$runs/demo" --training.steps "$demo" --training.batch_size 32
part sampling 45 python benchmarks/sampling_speed.py --architecture "$architecture" --batch_size "$batch" --steps 10
part lean 50 python benchmarks/lean.py "${lean[@]}"
train default 150
train reduce-overhead 90  # the kernels of the part before are cached
