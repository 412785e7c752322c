PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?=
# A machine that keeps local wheels (a CPU build of torch, say) names their folder in PIP_FIND_LINKS; uv reads another name.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# Ray would otherwise rebuild the environment in every worker when it is started by uv.
export RAY_ENABLE_UV_RUN_RUNTIME_ENV := 0

.PHONY: install
install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --editable '.[$(EXTRAS)]'
	touch $@
