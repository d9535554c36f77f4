# Two commands matter: `make run` (set up, replay a real failure) and `make test` (set up, check, test).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The tests start hundreds of processes: what these import is compiled once, also where the environment forbids it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-deploy campaign check format constraints clean setup

run: $(VENV)/.run
	$(BIN)/holdfast demo

# Three at a time: much of the time goes into waits of real processes. A file's tests share its fleets, so they stay
# together; and those with fleets come first, so that no worker is left with a long file at the end.
test: check
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

# The long combinations that `make test` leaves out: before a release.
campaign: setup
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m campaign

# Builds the image and runs both compose files with real containers; skips where there is no engine.
test-deploy: setup
	$(BIN)/pytest -m deploy -s tests/deploy

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: $(VENV)/.dev

# Installed again when the dependencies change; the package itself is installed in place.
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing into $(VENV), which may take a minute'
	$(PIP_INSTALL) '.[embedded]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing into $(VENV), which may take a minute'
	$(PIP_INSTALL) '.[dev]'
	@touch $@ $(VENV)/.run

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

constraints: setup
	(head -n 1 constraints.txt; $(BIN)/pip freeze --exclude-editable) > constraints.new && mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
