# Every target works on a fresh machine: the environment in .venv is made when it is not there.
PYTHON  ?= python3
VENV    ?= .venv
RESULTS ?= outputs
SUITE   ?= digits
ARGS    ?=
PY      := $(VENV)/bin/python
LOWEST  ?= tests/samplers tests/caching tests/metrics tests/results tests/suites/hub/test_suite.py tests/core/test_recipe.py \
  tests/test_packaging.py tests/test_cli.py
# In a crowded figure the text of matplotlib 3.8 leaves no room for one label.
LABELS  := tests/results/test_figures.py::test_panels_show_cost_and_time_and_simulated_rows_have_no_time
READY   := $(VENV)/.ready
DOCS    := $(VENV)/.docs
.DEFAULT_GOAL := help

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.10 or newer, or set PYTHON=..."; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is older than Python 3.10; set PYTHON=python3.11 (or newer)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

.PHONY: help setup demo test test-lowest lint docs train sweep plan tables figures results convergence cascade bench gpu gpu-bundle clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY) ## make the environment (.venv)

demo: $(READY) ## sweep samplers, caching, stitching and precision on real digits; table, plots, offline wandb runs
	$(PY) -m accel experiment=demo results=$(RESULTS) $(ARGS)

test: $(READY) ## the whole test suite, on all cores
	$(PY) -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal $(ARGS)

test-lowest: ## tests with the lowest versions that pyproject.toml allows, in .venv-lowest (on Linux torch 2.6 is a CUDA build, 3 GB)
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --prefer-binary --constraint constraints-lowest.txt --editable '.[dev]'
	$(VENV)-lowest/bin/python -m pytest $(LOWEST) --deselect $(LABELS) $(ARGS)

lint: $(READY) ## ruff: rules and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

$(DOCS): $(READY)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

docs: $(DOCS) ## the site of docs/ into site/, strictly: a dead link or a page without a place in it is an error
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet $(ARGS)

train: $(READY) ## train the shipped weights again: make train SUITE=digits PART=small
	$(PY) -m accel train --suite $(SUITE) $(if $(PART),--part $(PART)) $(ARGS)

sweep: $(READY) ## Hydra multirun: make sweep ARGS="sampler=ddim,unipc sampler.steps=5,10"
	$(PY) -m accel --multirun results=$(RESULTS) $(ARGS)

plan: $(READY) ## what the demo would run, what is done and how long it takes; runs nothing
	$(PY) -m accel experiment=demo plan=true results=$(RESULTS) $(ARGS)

tables: $(READY) ## rebuild the tables of every study from its records
	$(PY) -m accel rebuild tables --results $(RESULTS)

figures: $(READY) ## rebuild the figures of every study from its records
	$(PY) -m accel rebuild figures --results $(RESULTS)

STUDIES := plain_digits plain_digits_dit plain_digits_flow plain_shapes headline_digits headline_shapes demo judge judge_cfg \
  samplers_digits samplers_digits_cfg2 samplers_digits_cfg4 flow_digits reference_digits dmcmc guidance_digits \
  caching_digits caching_fresh_digits caching_ddim_digits stitching_digits times_digits composition_digits \
  caching_dit caching_fresh_dit steps_by_cache stitching_dit times_dit \
  samplers_shapes guidance_shapes caching_shapes stitching_shapes times_shapes composition_shapes overview_shapes \
  students_digits step_search_digits step_search_shapes autodiffusion_digits recipe_search_digits recipe_search_fresh_digits recipe_search_shapes recipe_search_shapes_adherence \
  precision_digits precision_shapes executed_digits

results: $(READY) ## compute the tracked tables in results/ (all studies, extras search, torchao, openvino; about eight hours)
	for study in $(STUDIES); do $(PY) -m accel experiment=$$study results=results $(ARGS) || exit 1; done
	$(PY) -m accel bench compatibility --results results
	$(PY) -m accel bench convergence --results results
	$(PY) -m accel bench cascade --results results
	$(PY) -m accel bench overhead --results results
	$(PY) -m accel bench schedulers --results results
	$(PY) -m accel bench precision --results results --sizes tiny --repetitions 20
	$(PY) -m accel bench precision --results results --sizes "mid-size,Stable Diffusion 1.5" --repetitions 16
	$(PY) -m accel bench architectures --results results
	$(PY) -m accel bench adherence --results results

convergence: $(READY) ## error of every sampler on every grid against the exact ODE: table and figure
	$(PY) -m accel bench convergence --results $(RESULTS)

cascade: $(READY) ## DC-Solver: search ratios for many (steps, scale) pairs, fit the cascade regression, compare
	$(PY) -m accel bench cascade --results $(RESULTS) --suite $(SUITE) $(ARGS)

BENCH   ?= overhead
bench: $(READY) ## a benchmark by hand (BENCH=overhead schedulers deepcache precision architectures adherence ...)
	$(PY) -m accel bench $(BENCH) --results $(RESULTS) $(ARGS)

gpu: $(READY) ## what accel does on this machine's GPU, within ten minutes; again to go on: make gpu ARGS="--only speed --minutes 30"
	$(PY) -m accel bench device --device cuda --results $(RESULTS) $(ARGS)

WHEELS ?= wheels
BUNDLE ?= 3.12
MISSING := diffusers hydra-core omegaconf rich markdown-it-py mdurl pygments importlib_metadata zipp
gpu-bundle: $(READY) ## wheels/ for a GPU machine without network that has torch, transformers, pandas ... but not these (Linux x86_64, Python BUNDLE=3.12)
	$(PY) -m pip download --quiet --dest $(WHEELS) --no-deps --only-binary :all: --python-version $(BUNDLE) \
	  --platform manylinux2014_x86_64 --constraint constraints.txt $(MISSING)
	$(PY) -m pip wheel --quiet --wheel-dir $(WHEELS) --no-deps antlr4-python3-runtime==4.9.3 .
	@echo 'there: python -m pip install --no-index --no-deps $(WHEELS)/*.whl && accel bench device'

clean: ## remove the environment, caches and everything under outputs/
	rm -rf $(VENV) $(VENV)-lowest outputs site .pytest_cache .ruff_cache *.egg-info
