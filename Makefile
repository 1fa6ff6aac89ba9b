# The two commands: `make demo` and `make test`. Both make their own virtual environment in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint format environment clean

environment: .venv/.ready

.venv/.ready: requirements.txt requirements-nodeps.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; assert v >= (3, 11), f"Python 3.11 or newer is needed, found {v.major}.{v.minor}; set PYTHON=..."'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt
	$(BIN)/pip install --quiet --no-deps -r requirements-nodeps.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# make demo IMAGES=folder/of/class/folders OUT=runs/mine
demo: environment
	$(BIN)/addp demo $(if $(IMAGES),--images "$(IMAGES)") $(if $(OUT),--out "$(OUT)")

lint: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -m "not long"

format: environment
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
