# make demo       set up and run the whole thing once on simulated and real pictures, about 5 minutes on 2 cores
# make test       set up, lint, type-check and run the fast tests
# make test-slow  the tests that need longer: kills, several processes, real data
# CORPUS="STORE …" make demo   learns your own packed stores instead of the simulated ones

PYTHON ?= python3
VENV   ?= .venv
OUT    ?= demo-out
BIN     = $(VENV)/bin
# What the set-up leaves of five and a half minutes is the demo's: it learns for as long as there is time.
BEGAN  := $(shell date +%s)
LEFT    = $(shell awk -v s=$$(($$(date +%s) - $(BEGAN))) 'BEGIN {m = (330 - s) / 60; print (m > 4.5 ? 4.5 : (m < 1.5 ? 1.5 : m))}')
# Two test processes on two cores; one thread each, so that sums are the same on every machine.
PYTEST  = OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo test test-slow lint format docs wheel clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/dofa demo --out $(OUT) --minutes $(LEFT) $(if $(CORPUS),--corpus $(CORPUS))

test: lint
	$(PYTEST) -q -n 2 --dist worksteal -m "not slow"

test-slow: $(VENV)/.dev
	$(PYTEST) -q -n 2 --dist worksteal -m "slow and not alone"
	$(PYTEST) -q -m alone

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks tools examples
	$(BIN)/ruff format --check src tests benchmarks tools examples
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev
	$(BIN)/ruff format src tests benchmarks tools examples
	$(BIN)/ruff check --fix src tests benchmarks tools examples

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist $(OUT)

$(VENV)/.torch: tools/install_torch.py
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON): set PYTHON to a Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "python3-venv is missing: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python tools/install_torch.py
	@touch $@

# One installation for each purpose; the editable install makes changes of the source visible at once.
$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip --disable-pip-version-check install --quiet -e ".[train,tasks,plot]"
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip --disable-pip-version-check install --quiet -e ".[dev]"
	@touch $@
