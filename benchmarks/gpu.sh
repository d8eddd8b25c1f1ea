#!/usr/bin/env bash
# What is measured on a GPU, in at most eight minutes: training, sampling, the demo's training, lean execution, tests.
#
#     benchmarks/gpu.sh RESULTS                 # a folder; each part writes a file there as it goes
#     QUICK=1 benchmarks/gpu.sh RESULTS         # tiny networks, to try the script where there is no GPU
#
# Each part has a time limit of its own, and one that fails or runs out of it does not end the others: its file says so.
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
    timeout "$limit" "$@" >"$results/$name.txt" 2>"$results/$name.err"
    local status=$?
    echo "$name: exit $status after $((SECONDS - started)) s" | tee -a "$results/parts.txt"
}

if [ -n "${QUICK:-}" ]; then
    architecture=tiny batch=4 steps=6 demo=20 lean=(--architecture tiny --batch_sizes 1)
    tests=tests/test_draws.py
else
    architecture=cifar10 batch=128 steps=40 demo=2000 lean=(--batch_sizes 16)
    tests=tests
fi

# Training: images/s of the default recipe, by how its step is compiled, beside the plain loop.
for how in off cudagraphs default reduce-overhead; do
    part "train_bf16_$how" 75 python benchmarks/throughput.py --architecture $architecture --batch_size $batch \
        --steps $steps --rows default+bf16 --compile $how
done
# The demo's training: 2,000 steps of batch 32, all in all.
part demo_training 60 ddpm-redistill distill --output_dir "$runs/demo" --training.steps $demo --training.batch_size 32
# Sampling: teacher and student, eager and captured.
part sampling 60 python benchmarks/sampling_speed.py --architecture $architecture --batch_size $batch --steps 10
part lean 70 python benchmarks/lean.py "${lean[@]}"
part tests 150 python -m pytest -q -n 8 $tests
cat "$results"/parts.txt
