#!/usr/bin/env bash
# Why a kernel is as fast as it is, from ncu, as CSV: profile.sh [OP-SUITE-FILTER] [few|many]
# few: bandwidth, stall reasons and occupancy of each decode kernel of the ops suite at 1 to 64 rows.
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
  exec ncu --target-processes all --kernel-name regex:device_kernel --launch-skip 20 --launch-count 24 \
    --section SpeedOfLight --section ComputeWorkloadAnalysis --section MemoryWorkloadAnalysis_Tables \
    --section WarpStateStats --section SourceCounters --section LaunchStats --csv "${suite[@]}" --rows 512,2048,8192
fi
metrics=dram__bytes_read.sum.per_second,dram__throughput.avg.pct_of_peak_sustained_elapsed
metrics+=,lts__t_bytes.sum.per_second,l1tex__data_bank_conflicts_pipe_lsu.sum
metrics+=,sm__inst_executed_pipe_tensor.sum,smsp__issue_active.avg.pct_of_peak_sustained_active,gpu__time_duration.sum
exec ncu --target-processes all --kernel-name regex:stripe_linear\|gap_linear --launch-skip 20 --launch-count 40 \
  --metrics "$metrics" --section WarpStateStats --section Occupancy --section LaunchStats --csv \
  "${suite[@]}" --rows 1,16,64
