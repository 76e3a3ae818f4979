#!/usr/bin/env bash
# compute-sanitizer's four tools over the small GPU tests, side by side: sanitize.sh [PYTHON]
# Each tool must first find a bug that was planted for it, so that a clean run means something.
set -uo pipefail
cd "$(dirname "$0")/../.."
export python=${1:-python3}
for tool in nvidia-smi compute-sanitizer nvcc; do
  command -v "$tool" >/dev/null || { echo "no $tool here: the sanitizer's four tools were NOT run"; exit 3; }
done
built=$(mktemp -d)
export built
trap 'rm -rf "$built"' EXIT
nvcc -arch=native -lineinfo -o "$built/planted" tests/gpu/planted.cu || exit 1
one() {
  local log=$built/$1
  if compute-sanitizer --tool "$1" --error-exitcode 9 "$built/planted" "$1" >"$log" 2>&1; then
    echo "$1 did not see its planted bug"; cat "$log"
    return 1
  fi
  # kernels of torch (by their mangled name) are not ours to check; but what they write must count as written
  local -a ours=(--kernel-name-exclude kns=2at6native)
  [ "$1" = initcheck ] && ours=()
  # each tensor from cudaMalloc, so that a tool knows its end; a graph can't capture that
  if PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 9 "${ours[@]}" \
      "$python" -m pytest -o addopts= tests/gpu -q -x -k "small and not graph" -p no:cacheprovider >"$log" 2>&1 &&
      ! grep -q "were NOT run" "$log"; then
    echo "$1: its planted bug found, the small tests clean"
    return 0
  fi
  echo "$1: not clean"; tail -n 60 "$log"
  return 1
}
export -f one
printf '%s\n' memcheck racecheck initcheck synccheck | xargs -P 4 -I{} bash -c 'one {}'
