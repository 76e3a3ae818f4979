#!/usr/bin/env bash
# Everything that only a GPU can show, largest unknown first, partial results kept: gpu.sh RESULTS MINUTES
# Builds _C for the card in place, runs the GPU tests, the sanitizer on small cases, then the benchmarks.
set -uo pipefail
results=$(mkdir -p "$1" && cd "$1" && pwd)
deadline=$((SECONDS + ${2:-9} * 60))
cd "$(dirname "$0")/.."
left() { echo $((deadline - SECONDS)); }
step() { # name, seconds at most, command...
  local name=$1 most=$2; shift 2
  local budget=$(( $(left) < most ? $(left) : most ))
  [ "$budget" -gt 5 ] || { echo "$name: no time left"; return 1; }
  timeout "$budget" "$@" >"$results/$name.log" 2>&1
  local rc=$?
  echo "$name: exit $rc, $(left) s left"; tail -n 3 "$results/$name.log"
  return $rc
}
nvidia-smi --query-gpu=name,driver_version,power.limit,clocks.max.sm --format=csv >"$results/card.csv" || exit 3
step build 180 python3 -m pip install --no-build-isolation --no-deps --config-settings=cmake.define.AJOUR_CUDA=ON . || exit 1
step tests 240 python3 -m pytest tests/ops tests/gpu -q -x
step sanitizer 120 compute-sanitizer --tool memcheck python3 -m pytest tests/gpu -q -x -k small
step ops 240 python3 -m benchmarks ops --device cuda --json "$results/ops.json"
step models 120 python3 -m benchmarks models --device cuda --json "$results/models.json"
step training 120 python3 -m benchmarks.training --device cuda --dtypes bfloat16 --json "$results/training.json"
