#!/usr/bin/env bash
# make sanitize: the format and CPU kernel tests on a build with the address and undefined-behaviour sanitizers.
# Its package lies in build/sanitize/package; leaks are not looked for, as most of them are Python's own and torch's.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-.venv/bin/python}
built=$PWD/build/sanitize

for name in $(grep -ohE '_mm[0-9]*_[a-z0-9_]*(mask[a-z]*_[a-z]*(load|store)|gather|scatter)[a-z0-9_]*' csrc/cpu/* | sort -u); do
  grep -q "define $name(" tests/sanitizers/masked.h || { echo "tests/sanitizers/masked.h does not know $name"; exit 1; }
done

AJOUR_CUDA=OFF "$python" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
  --target "$built/package" -C build-dir="$built/cmake" -C cmake.define.AJOUR_SANITIZE=ON \
  -C cmake.build-type=RelWithDebInfo -C install.strip=false .

# -S: no .pth file is read, so the editable install's import hook, which wins over every path, is never set up
PYTHONPATH=$built/package:$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'):$PWD/tests
export PYTHONPATH ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
# libstdc++ too: the sanitizer looks for the throw it wraps when it starts, before anything C++ is loaded
libraries=$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so):$(g++ -print-file-name=libstdc++.so)
sanitized() { LD_PRELOAD=$libraries "$python" -S "$@"; }

levels=$(sanitized tests/sanitizers/planted.py)
for bug in overflow undefined $levels; do
  expected="heap-buffer-overflow"
  [ "$bug" = undefined ] && expected="signed integer overflow"
  report=$(sanitized tests/sanitizers/planted.py "$bug" 2>&1) && { echo "$bug: the planted bug passed"; exit 1; }
  grep -q "$expected" <<<"$report" || { echo "$report"; echo "$bug: no $expected was reported"; exit 1; }
  echo "$bug: the planted bug was found"
done

# a report goes to file descriptor 2, which pytest would swallow: --capture=sys
sanitized -m pytest -p no:cacheprovider --capture=sys -o timeout=900 -q -p sanitizers.planted \
  tests/formats tests/test_detect.py tests/ops/test_{nm,block,bitmap}_linear_cpu.py \
  tests/ops/test_{block_sddmm,transposed,masked_update}.py "${@:2}"
