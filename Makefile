# spectral-run: `make help` lists what there is to make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed

# One thread per process: small networks run slower on more, and tests run side by side.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup run test lint types tests data golden bench bench-gpu lock clean

help:  ## list the targets
	@grep -hE '^[a-z0-9_-]+:.*## ' $(MAKEFILE_LIST) | sort | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## create .venv and install everything from constraints.txt

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@if command -v uv >/dev/null 2>&1; then \
		uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@

run: $(READY)  ## the quick start: digits, with and without the penalty
	$(BIN)/spectral-run experiment=quickstart

test: lint types tests  ## lint, types and tests: what CI runs

lint: $(READY)  ## ruff: format and rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)  ## mypy, strict
	$(BIN)/mypy

tests: $(READY)  ## pytest alone
	$(BIN)/python -m pytest -q -n 2

data: $(READY)  ## fetch every data set from its official source into $SPECTRAL_DATA (default: data)
	$(BIN)/python -m spectral_run.runner.fetch

golden: $(READY)  ## renew tests/golden/*.json; the difference belongs in the commit
	SPECTRAL_RENEW_GOLDEN=1 $(BIN)/python -m pytest -q tests/runner/test_golden.py

bench-gpu: $(READY)  ## check and time the CUDA backend (needs a GPU)
	$(BIN)/python benchmarks/gpu.py $(ARGS)

bench: $(VENV)/.bench  ## time curvature against other libraries, for docs/speed.md: 10 to 20 minutes; ARGS=--quick: 5
	$(BIN)/python benchmarks/curvature.py $(ARGS)
	$(BIN)/python benchmarks/report.py

$(VENV)/.bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	@touch $@

lock:  ## renew constraints.txt (needs uv)
	uv pip compile pyproject.toml --universal --extra dev --extra slurm --no-header --no-annotate --no-emit-index-url --output-file constraints.txt --upgrade

clean:  ## remove the environment and caches; results stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist src/*.egg-info
