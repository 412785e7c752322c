# make demo      install and annotate the PBMC cells that ship inside scanpy
# make test      install with the test extra and run the suite
# make install   only create .venv
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A machine that keeps local wheels (a CPU build of torch, say) names their folder in PIP_FIND_LINKS; uv reads another name.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# Ray would otherwise rebuild the environment in every worker when it is started by uv.
export RAY_ENABLE_UV_RUN_RUNTIME_ENV := 0
# The suite starts hundreds of processes that import this package: compiled once, not half a second in each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test test-first test-second lint
install: $(VENV)/.core

demo: $(VENV)/.core
	$(BIN)/python -m jobs.demo --out out/demo

# Two processes side by side, about as long as one another, each with a Ray of its own and one thread for numbers: more
# would wait for each other. (Numba, where it is first used, sets the number of OpenMP threads for all of a process.)
# Ray starts workers when they are needed, not as many as there are CPUs at each of its many starts, and keeps those that
# wait, which have imported what the next run needs; and nobody takes this machine away while it trains.
FIRST_HALF := tests/deployments tests/faults tests/jobs tests/plugins
TEST := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 RAY_prestart_worker_first_driver=0 RAY_num_workers_soft_limit=8 \
	RAY_TRAIN_ENABLE_PREEMPTION_WATCHER=0 $(BIN)/python -m pytest -q
test: $(VENV)/.test
	$(MAKE) --jobs=2 --output-sync=target test-first test-second lint

test-first: $(VENV)/.test
	$(TEST) $(FIRST_HALF)

test-second: $(VENV)/.test
	$(TEST) tests $(addprefix --ignore=,$(FIRST_HALF))

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(BIN)/uv:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv

$(VENV)/.core: pyproject.toml $(BIN)/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --editable .
	touch $@

$(VENV)/.test: pyproject.toml $(BIN)/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --editable '.[cpu,test]'
	touch $@ $(VENV)/.core
