#!/usr/bin/env bash
# Everything that only a GPU can show, the largest unknown first: gpu.sh RESULTS MINUTES [STEPS]
# STEPS are some of: build doctor tests sanitizer decode calls blocks prefill crossover e4m3 training models tokens train
# decode_all many_all blocks_all targets check counters drain. No step stops another one; what depends on a build or a card
# that is not there is "not run". RESULTS/steps.txt says how each step ended: a step that ended well is not run again, one
# that ran out of time goes on where it stopped (tests by file, layers by cell; the others begin anew), so the same command
# finishes what MINUTES cut off. What another commit left moves to a folder of its name. The last page printed is a
# summary. COMMIT names the commit where .git is missing, CUTLASS its headers' folder
# where nvidia-cutlass is not installed. The card's own settings (clocks, power, MIG) are read, never changed.
set -uo pipefail
mkdir -p "$1" || exit 2
results=$(cd "$1" && pwd)
deadline=$((SECONDS + ${2:-9} * 60 - 10))  # ten seconds for the summary and whoever collects the results
steps=${3:-build doctor tests sanitizer decode calls blocks prefill crossover e4m3 training models tokens train decode_all
  many_all blocks_all targets check counters drain}
cd "$(dirname "$0")/.." || exit 2
log=$results/log.txt
known=$results/steps.txt
sha=${COMMIT:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
before=$(sed -n 's/^commit: //p' "$known" 2>/dev/null)
if [ -n "$before" ] && [ "$before" != "$sha" ]; then  # figures of two commits do not belong together
  mkdir -p "$results/$before"
  find "$results" -maxdepth 1 -type f -exec mv {} "$results/$before/" \;
fi
[ -f "$known" ] || echo "commit: $sha" >"$known"
failed=0
built=yes
PATH=$PATH:/usr/local/cuda/bin  # where the toolkit usually is
export PATH

left() { echo $((deadline - SECONDS)); }
wanted() { case " $(echo $steps) " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
# Seconds that what comes before the largest unknown must leave for it, or nine minutes would show tests alone.
kept_for_decode() {
  case $1 in tests | sanitizer) wanted decode && ! grep -q "^decode: done" "$known" && echo 120 && return ;; esac
  echo 0
}
ended() { # name, outcome: said, and remembered in the place of what was known of the step
  echo "$1: $2" | tee -a "$log"
  { grep -v "^$1: " "$known"; echo "$1: $2"; } >"$known.part"
  mv "$known.part" "$known"
}

step() { # name, seconds at most, command...: runs it if it is wanted, possible, missing and there is time
  local name=$1 most=$2 budget rc began=$SECONDS
  shift 2
  wanted "$name" || return 0
  if grep -q "^$name: done" "$known" && [ "$name" != build ] && [ "$name" != targets ]; then
    echo "$name: done before"
    return 0
  fi
  if [ "$name" != check ] && [ "$card" = no ]; then
    ended "$name" "not run: this machine has no GPU"
    return 1
  fi
  if [ "$built" = no ]; then
    ended "$name" "not run: the build failed"
    return 1
  fi
  budget=$(($(left) - $(kept_for_decode "$name")))
  budget=$((budget < most ? budget : most))
  if [ "$budget" -le 5 ]; then
    ended "$name" "not run: no time left"
    failed=1
    return 1
  fi
  echo "=== $name: $* (at most $budget s)" >>"$log"
  timeout -k 5 "$budget" "$@" >>"$log" 2>&1
  rc=$?
  case $rc in
    0) ended "$name" "done in $((SECONDS - began)) s, $(left) s left" ;;
    124 | 137) ended "$name" "out of time after $budget s, what it wrote is kept" ;;
    *) ended "$name" "failed with exit $rc after $((SECONDS - began)) s"; tail -n 8 "$log" ;;
  esac
  [ "$rc" = 0 ] || failed=1
  return "$rc"
}

measure() { # name, seconds at most, suite, options...: a benchmark; what it adds to the suite's result stands beside the log
  local name=$1 most=$2 suite=$3
  shift 3
  step "$name" "$most" python3 -m benchmarks "$suite" --device cuda --json "$results/$suite.json" --continue \
    ${COMMIT:+--commit "$COMMIT"} "$@"
}

nvidia-smi --query-gpu=name,driver_version,power.limit,clocks.max.sm,clocks.max.memory --format=csv >"$log.card" 2>&1
card=$([ $? = 0 ] && echo yes || echo no)
{ [ "$card" = yes ] && cat "$log.card" || echo "no GPU here: nvidia-smi does not answer"; } | tee -a "$log"
rm -f "$log.card"
python3 - <<'PY' 2>&1 | tee -a "$log"
import sys
from importlib.metadata import PackageNotFoundError, version

needed = (
    "torch", "triton", "safetensors", "rich", "typer", "scikit-build-core", "pybind11", "ninja", "cmake", "pytest",
    "pytest-timeout", "hypothesis", "nvidia-cutlass",
)


def said(name):
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} MISSING"


print("python", sys.version.split()[0] + ",", ", ".join(map(said, needed)))
PY

# for this card alone, which halves the compiler's time; isolated from no network, so with what is installed
# every configuration of the kernels for sm_90a, a source each
capability=$([ "$card" = no ] || python3 -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
[ "$capability" = 90 ] && capability=90a
step build 300 python3 -m pip install --no-build-isolation --no-deps --force-reinstall \
  --config-settings=cmake.define.AJOUR_CUDA=ON --config-settings=cmake.define.AJOUR_SM90_CONFIGS=ALL \
  ${CUTLASS:+--config-settings=cmake.define.AJOUR_CUTLASS="$CUTLASS"} \
  --config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES="$capability-real" .
[ $? = 0 ] || [ "$card" = no ] || built=no
if [ "$capability" = 90a ] && [ "$built" = yes ] && ! python3 -c 'import sys; from ajour._native import native
sys.exit(not any(native.sm90_configs.values()))' >>"$log" 2>&1; then
  ended build "failed: no cuda_sm90, as CUTLASS's headers were not found: install nvidia-cutlass or set CUTLASS"
  failed=1
fi

step doctor 60 python3 -c 'import sys; from ajour_command.start import main; sys.argv = ["ajour", "doctor"]; main()'

step tests 300 bash tests/gpu/run.sh python3 "$results/tests.txt"

step sanitizer 150 bash tests/gpu/sanitize.sh python3

# torch.compile tunes itself for seconds in every cell; the first figures come without it
measure decode 180 ops --modes graph --no-compile --no-gradients --rows 1,8,16,32,64 --only '2:4,1:4,unstructured' \
  --shapes 'Llama-3-8B,Llama-3-70B up,Qwen2.5-7B' --seconds 0.1
# what a call costs the host, and what packing costs
measure calls 30 ops --modes eager --no-compile --no-peers --no-gradients --only 'tiny,2:4' --shapes 'tiny,Llama-3-8B out' \
  --seconds 0.1
measure blocks 90 ops --modes graph --no-compile --no-gradients --only 'block 64x64,block 128x128,block 32x32,block 16x16' \
  --rows 64,512,2048,8192 --shapes 'MLP 4096x16384,Llama-3-8B up,Llama-3-70B up' --seconds 0.1
measure prefill 60 ops --modes graph --no-compile --no-gradients --only 2:4 --rows 256,512,1024,2048,4096,8192 \
  --shapes 'Llama-3-8B,Llama-3-70B up,Qwen2.5-7B' --seconds 0.1
# from one row to 16384: where each kernel of 2:4 ends and the next begins
measure crossover 150 ops --modes graph --no-compile --no-gradients --only 2:4 \
  --rows 1,16,64,128,256,512,1024,2048,4096,8192,16384 --shapes 'Llama-3-8B up,Llama-3-8B down,Llama-3-70B up,Qwen2.5-7B' \
  --seconds 0.1
measure e4m3 60 ops --modes graph --no-compile --only e4m3 --rows 1,16,64,128,2048,8192 \
  --shapes 'Llama-3-8B,Llama-3-70B up,Qwen2.5-7B' --seconds 0.1
measure training 40 ops --modes eager --no-compile --no-peers --only 'block 64x64 10% random' --rows 8192 \
  --shapes 'MLP 4096x16384' --seconds 0.1
measure models 120 models --modes graph --only 'Llama-3-8B' --no-compile
measure tokens 120 tokens
measure train 60 train

# what the targets ask for beyond the first figures; cells that stand already are left out
measure decode_all 600 ops --modes graph --no-compile --no-gradients --rows 1,8,16,32,64 --only '2:4,1:4,unstructured' \
  --shapes 'Llama-3,Qwen2.5-7B' --seconds 0.1
measure many_all 600 ops --modes graph --no-compile --no-gradients --only '2:4,e4m3' --shapes 'Llama-3,Qwen2.5-7B' \
  --seconds 0.1
measure blocks_all 600 ops --modes graph --no-compile --no-gradients --only block \
  --shapes 'MLP 4096x16384,Llama-3-8B up,Llama-3-70B up' --seconds 0.1
# what their first share of the time cut off, which would be cut off again however often this is run
grep -q "^tests: out of time" "$known" && step tests 600 bash tests/gpu/run.sh python3 "$results/tests.txt"
grep -q "^tokens: out of time" "$known" && measure tokens 600 tokens

mkdir -p "$results/by_device"
ln -sfn .. "$results/by_device/this run"
step targets 60 sh -c 'python3 -m benchmarks check --results "$0/by_device" | tee "$0/targets.txt"' "$results"
step check 60 python3 -m benchmarks check

step counters 150 bash benchmarks/profile.sh 2:4
step drain 60 bash benchmarks/profile.sh 2:4 many

echo
python3 benchmarks/gpu_summary.py "$results"
[ "$card" = yes ] || exit 3
exit "$failed"
