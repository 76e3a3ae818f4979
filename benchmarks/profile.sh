#!/usr/bin/env bash
# Why a decode kernel is as fast as it is, from ncu: profile.sh [OP-SUITE-FILTER]
# Bandwidth, stall reasons and occupancy of each decode kernel of the ops suite, as CSV.
set -uo pipefail
only=${1:-2:4}
cd "$(dirname "$0")/.."
command -v ncu >/dev/null || { echo "no ncu here: nothing was profiled"; exit 3; }
metrics=dram__bytes_read.sum.per_second,dram__throughput.avg.pct_of_peak_sustained_elapsed
metrics+=,lts__t_bytes.sum.per_second,l1tex__data_bank_conflicts_pipe_lsu.sum
metrics+=,sm__inst_executed_pipe_tensor.sum,smsp__issue_active.avg.pct_of_peak_sustained_active,gpu__time_duration.sum
ncu --target-processes all --kernel-name regex:stripe_linear\|gap_linear --launch-skip 20 --launch-count 40 \
  --metrics "$metrics" --section WarpStateStats --section Occupancy --section LaunchStats --csv \
  python3 -m benchmarks ops --device cuda --modes eager --no-compile --no-peers --shapes 'Llama-3-8B up' --dtypes bfloat16 --rows 1,16,64 --only "$only" --seconds 0.01
