#!/usr/bin/env bash
# Why a kernel is as fast as it is, from ncu, as CSV: profile.sh [OP-SUITE-FILTER] [few|many]
# few: bandwidth, stall reasons and occupancy of each decode kernel of the ops suite, the dense control beside them, at 1,
# 16 and 64 rows: a run for each, or the first one's launches would be all that is seen.
# many: what keeps wgmma.sp waiting at 512 to 8192 rows: pipes, shared memory, and the instructions that stall
# (docs/kernels.md says what is expected).
set -uo pipefail
only=${1:-2:4}
rows=${2:-few}
cd "$(dirname "$0")/.."
command -v ncu >/dev/null || { echo "no ncu here: nothing was profiled"; exit 3; }
suite=(python3 -m benchmarks ops --device cuda --modes eager --no-compile --no-peers --no-gradients
  --shapes 'Llama-3-8B up' --dtypes bfloat16 --only "$only" --seconds 0.01)
if [ "$rows" = many ]; then
  exec ncu --target-processes all --clock-control none --kernel-name regex:device_kernel --launch-skip 20 --launch-count 24 \
    --section SpeedOfLight --section ComputeWorkloadAnalysis --section MemoryWorkloadAnalysis_Tables \
    --section WarpStateStats --section SourceCounters --section LaunchStats --csv "${suite[@]}" --rows 512,2048,8192
fi
metrics=dram__bytes_read.sum.per_second,dram__throughput.avg.pct_of_peak_sustained_elapsed
metrics+=,lts__t_bytes.sum.per_second,l1tex__data_bank_conflicts_pipe_lsu.sum
metrics+=,sm__inst_executed_pipe_tensor.sum,smsp__issue_active.avg.pct_of_peak_sustained_active,gpu__time_duration.sum
failed=0
for m in 1 16 64; do
  ncu --target-processes all --clock-control none --kernel-name regex:stripe_linear\|gap_linear \
    --launch-skip 20 --launch-count 64 --metrics "$metrics" --section WarpStateStats --section Occupancy --section LaunchStats --csv \
    "${suite[@]}" --rows "$m" || failed=$?
done
exit "$failed"
