# The two commands: `make demo` and `make test`; for every edit, `make check`. Each makes the virtual
# environment in .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo emoji test test-gpu check fast lint format environment browser clean

environment: .venv/.ready

# make environment GPU=1: with PyTorch and xformers for CUDA (docs/gpu.md)
.venv/.ready: requirements.txt requirements-nodeps.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; assert v >= (3, 11), f"Python 3.11 or newer is needed, found {v.major}.{v.minor}; set PYTHON=..."'
	$(PYTHON) -m venv .venv
	$(if $(GPU),$(BIN)/pip install --quiet -r requirements-gpu.txt)
	$(BIN)/pip install --quiet -r requirements.txt
	$(BIN)/pip install --quiet --no-deps -r requirements-nodeps.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# make demo IMAGES=folder/of/class/folders OUT=runs/mine
# make demo QUICK=1: pictures soon, from the network that ships, and no figures
# make demo DENSE=1: and then a segmenter and a detector on the demo's encoder
demo: environment
	$(BIN)/addp demo $(if $(QUICK),--quick) $(if $(DENSE),--dense) $(if $(IMAGES),--images "$(IMAGES)") $(if $(OUT),--out "$(OUT)")

# make emoji RUN=runs/emoji/addp: take the networks of a run as those that ship (docs/shipped.md)
emoji: environment
	rm -rf runs/emoji/export
	$(BIN)/addp export "$(or $(RUN),runs/emoji/addp)" runs/emoji/export --format huggingface --dtype float16
	cp runs/emoji/export/*.safetensors model/emoji/
	cd model/emoji && sha256sum *.safetensors > SHA256SUMS

lint: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The report is looked at in a real browser. Where there is none and it cannot be installed, that test says so.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	  (apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium) \
	  >/dev/null 2>&1 || echo "no Chromium here, and it could not be installed: tests of the report need it"

# One worker more than there are cores, at most four: many tests wait (for leases, time-outs, a server), and few compute.
WORKERS ?= $(shell cores=$$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN); echo $$((cores < 4 ? cores + 1 : 4)))
PYTEST = $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: lint browser
	$(PYTEST) -m "not long and not gpu"

# For every edit: lint, types and the fast tests, in less than a minute on two cores.
check: environment
	@$(MAKE) --no-print-directory --jobs 2 --output-sync lint fast

# Those that start no process and no server: tests/fast.py.
fast: environment
	$(PYTEST) -m "fast and not long and not gpu"

# On a machine with one CUDA device: docs/gpu.md. The recipes have it to themselves, to be timed.
PROCESSES ?= 8
test-gpu: GPU := 1
test-gpu: environment
	$(BIN)/pytest -m gpu tests/gpu --deselect tests/gpu/test_recipes.py -n $(PROCESSES) --dist worksteal
	$(BIN)/pytest -m gpu tests/gpu/test_recipes.py

format: environment
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv *.egg-info build .mypy_cache .ruff_cache .pytest_cache .hypothesis
