#!/usr/bin/env bash
# make sanitize: the format and CPU kernel tests on a build with the address and undefined-behaviour sanitizers.
# Its package lies in build/sanitize/package; leaks are not looked for, as most of them are Python's own and torch's.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-.venv/bin/python}
built=$PWD/build/sanitize

AJOUR_CUDA=OFF "$python" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
  --target "$built/package" -C build-dir="$built/cmake" -C cmake.define.AJOUR_SANITIZE=ON -C install.strip=false .

# -S: no .pth file is read, so the editable install's import hook, which wins over every path, is never set up
export PYTHONPATH=$built/package:$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'):$PWD/tests
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
# libstdc++ too: the sanitizer looks for the throw it wraps when it starts, before anything C++ is loaded
libraries=$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so):$(g++ -print-file-name=libstdc++.so)
sanitized() { LD_PRELOAD=$libraries "$python" -S "$@"; }

levels=$(sanitized tests/sanitizers/planted.py)
for bug in overflow undefined $levels; do
  expected="heap-buffer-overflow"
  [ "$bug" = undefined ] && expected="signed integer overflow"
  report=$(sanitized tests/sanitizers/planted.py "$bug" 2>&1) && { echo "bug $bug passed"; exit 1; }
  grep -q "$expected" <<<"$report" || { echo "$report"; echo "bug $bug: no '$expected' was reported"; exit 1; }
  echo "planted bug found: $bug"
done

# Left out: what never enters the compiled part, and numbers that its tests sweep again under other names.
sanitized -m pytest -p no:cacheprovider --capture=sys -o timeout=900 -q -p sanitizers.planted \
  tests/formats tests/test_detect.py tests/ops/test_{nm,block,bitmap}_linear_cpu.py "${@:2}"
