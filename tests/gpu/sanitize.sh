#!/usr/bin/env bash
# compute-sanitizer's four tools over the small GPU tests: sanitize.sh [PYTHON]
# Each tool must first find a bug that was planted for it, so that a clean run means something.
set -uo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
for tool in nvidia-smi compute-sanitizer nvcc; do
  command -v "$tool" >/dev/null || { echo "no $tool here: the sanitizer's four tools were NOT run"; exit 3; }
done
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
nvcc -arch=native -lineinfo -o "$built/planted" tests/gpu/planted.cu || exit 1
failed=0
# each tensor from cudaMalloc, so that a tool knows its end; a graph can't capture that
for tool in memcheck racecheck initcheck synccheck; do
  if compute-sanitizer --tool "$tool" --error-exitcode 9 "$built/planted" "$tool" >"$built/log" 2>&1; then
    echo "$tool did not see its planted bug"; cat "$built/log"; failed=1; continue
  fi
  if PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 --kernel-name-exclude kns=at::native \
      "$python" -m pytest -o addopts= tests/gpu -q -x -k "small and not graph" -p no:cacheprovider >"$built/log" 2>&1; then
    echo "$tool: its planted bug found, the small tests clean"
  else
    echo "$tool: not clean"; tail -n 60 "$built/log"; failed=1
  fi
done
exit $failed
