# spectral-run: `make help` lists what there is to make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed

# One thread per process: small networks run slower on more, and tests run side by side.
export OMP_NUM_THREADS ?= 1

# The paper's tables and figures: SCALE=smoke (does it work), small (3 seeds), paper (10 seeds, its own solver).
# SEEDS=0,1,2,3,4 takes others than the scale's, LAUNCHER=slurm sends every run to a cluster.
SCALE   ?= small
JOBS    ?= 2
SEEDS   ?=
LAUNCHER ?= parallel
SWEEP    = $(BIN)/spectral-run scale=$(SCALE) hydra/launcher=$(LAUNCHER) \
	$(if $(filter parallel,$(LAUNCHER)),hydra.launcher.n_jobs=$(JOBS)) $(if $(SEEDS),seed=$(SEEDS))
REPORT   = $(BIN)/spectral-run scale=$(SCALE)
RESULTS  = results/paper_$(SCALE)
CLIPPED := table2_clipped table3_clipped table4_clipped
SWEPT   := table2 table3 table4 table5 $(CLIPPED) figure1 figure2 figure5
PAPER   := $(SWEPT) figure3 figure4 figure6 figure7 table6 table7 verdicts

.DEFAULT_GOAL := help
.PHONY: help setup run test lint types tests data golden bench bench-gpu lock clean paper $(PAPER) chest reproduction

help:  ## list the targets
	@grep -hE '^[a-z0-9_-]+:.*## ' $(MAKEFILE_LIST) | sort | sed -E 's/:.*## /\t/' | expand -t 14

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

$(SWEPT): $(READY)
	$(SWEEP) experiment=$@

figure4: table2  ## training time by method, of table2 and figure1 (a sweep that is finished takes seconds)
figure4 figure6 figure7: figure1

figure4 figure6 figure7 verdicts: $(READY)  # verdicts: of the sweeps that are there
	$(REPORT) report=$@

# Split 1: on split 0 nothing that a network learns of the 741 images carries over to the test split. Balanced: with the
# plain loss four Grad-CAM maps of five are empty (both: docs/chest_xray.md).
CHEST    = $(SWEEP) dataset.split_seed=1 training.class_weights=balanced
START    = $(RESULTS)_start/chest_xray_64/densenet_small

chest: $(READY)  ## 64 pixels: a network for X-rays, six methods from it, their Grad-CAM maps on its test split
	$(CHEST) experiment=chest_sample name=paper_$(SCALE)_start
	$(CHEST) experiment=chest_finetune name=paper_$(SCALE) model=densenet_small $(if $(SEEDS),,seed=0,1,2) \
		dataset.resize=64 dataset.crop=64 curvature.batch_size=128 \
		init_from="$$(ls -td $(START)/none-* | head -1)/seed-\$${seed}"
	$(BIN)/spectral-run run_dir='$(RESULTS)/chest_xray/**' generalization=[gradcam_overlap] \
		generalization.gradcam_overlap.source=nih_test

figure3 table6 table7: chest
	$(REPORT) report=$@

paper:  ## table2 to table7, figure1 to figure7, verdicts, each a target too; SCALE=smoke|small|paper JOBS=2
	@for target in $(PAPER); do $(MAKE) --no-print-directory $$target || left="$$left $$target"; done; \
	if [ -n "$$left" ]; then echo "left out:$$left (each says why above)"; exit 1; fi

reproduction: $(READY)  ## docs/reproduction, its reports and page anew, of the runs in results/paper_small
	$(BIN)/python -m spectral_run.runner.reproduction results/paper_small docs/reproduction docs/reproduction.md

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
