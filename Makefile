# `make` alone lists the targets: the lines that have «##» behind a target.
PYTHON ?= python3
WORKERS ?=
ONCE ?=
IMAGES ?=
LABELS ?=
STORE ?=
DATASETS ?=
TORCH_INDEX_URL ?=
ONLY ?=

# In quotes for the shell: names have spaces, and quotes.
OWN_IMAGES = $(if $(IMAGES),--images '$(subst ','\'',$(IMAGES))')
OWN_LABELS = $(if $(LABELS),--labels '$(subst ','\'',$(LABELS))')

LABEL_STUDIO_VERSION := 1.23.2
BIN := .venv/bin
PIP := -m pip --disable-pip-version-check

# PyPI's PyTorch brings CUDA, which a machine without a GPU never uses. Another index may have the same release without.
INDEX := $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL))

# The installer that `make lock` resolves with, in an environment of its own.
UV_VERSION := 0.13.9
UPGRADE ?=

.PHONY: help demo try test up check figures audit clean install lock fast coverage
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)$$/make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r name what; do \
	  printf '%-14s %s\n' "$$name" "$$what"; done

demo: .venv/installed .venv-label-studio/installed-$(LABEL_STUDIO_VERSION) ## the main job for real, with a Label Studio of its own and sample projects; ONCE=1: end after the check; IMAGES=folder LABELS=A,B: with a project of your own
	@exec $(BIN)/python -m backend demo $(if $(filter-out 0 no false,$(ONCE)),--once) $(OWN_IMAGES) $(OWN_LABELS)

try: .venv/installed ## draw on an image of yours, see masks on the others: no Label Studio; IMAGES=folder LABELS=A,B STORE=file
	@test -n '$(subst ','\'',$(IMAGES))' || { echo "Name a folder of images: make try IMAGES=folder"; exit 1; }
	@exec $(BIN)/python -m backend try '$(subst ','\'',$(IMAGES))' $(OWN_LABELS) $(if $(STORE),--store '$(subst ','\'',$(STORE))')

up: .venv/installed ## service, workers and queue for a Label Studio that is already there; WORKERS=2: so many workers
	@exec $(BIN)/python -m backend up $(if $(WORKERS),--workers $(WORKERS))

# Fast tests first: they say in seconds what the end-to-end tests say in minutes.
test: check .venv-label-studio/installed-$(LABEL_STUDIO_VERSION) ## everything that CI runs: check, then all tests
	$(BIN)/python -m pytest -m "not e2e"
	$(BIN)/python -m pytest -m e2e

# Databases and caches of tests lie in memory, where a flush is free, and their folders go when a test has passed. Bytecode
# is kept even if the environment says not to: each process would rewrite the assertions of every file again.
IN_MEMORY = $(if $(shell test -w /dev/shm && echo yes),PYTEST_DEBUG_TEMPROOT=/dev/shm)

fast: .venv/installed-dev ## what most changes need, in less than three minutes: all tests but the slow and the end-to-end ones
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(IN_MEMORY) $(BIN)/python -m pytest -q -m "not e2e and not slow" \
	  --numprocesses auto --dist worksteal

coverage: .venv/installed-dev ## which lines of the backend are run by no test but end-to-end ones
	$(BIN)/python -m coverage run -m pytest -q -m "not e2e"
	$(BIN)/python -m coverage report

check: .venv/installed-dev ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# --strict: a package that cannot be looked up is a failure, not a green line.
audit: .venv/installed-dev ## known vulnerabilities of what is installed, from PyPI's data; needs the internet
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python $(PIP) install --quiet pip-audit
	$(BIN)/python $(PIP) freeze --exclude-editable > .venv-audit/installed.txt
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --requirement .venv-audit/installed.txt

figures: .venv/installed .venv-label-studio/installed-$(LABEL_STUDIO_VERSION) ## measure the figures on the pages again; DATASETS=DIR: those of quality, too; ONLY=demo,one: some
	$(BIN)/python docs/figures.py $(DATASETS) $(if $(ONLY),--only $(ONLY))

# One file for all supported Pythons. Without hashes: a mirror, or PyTorch's own index, may have other builds of the same
# release. Markers that say no more than pyproject.toml's environments are taken away; of the others, Python's stays.
# sam2 and label-studio-ml have commands of their own below.
COMPILE = .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
  --annotation-style line --custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade) pyproject.toml

lock: ## write requirements.txt and requirements-dev.txt anew from pyproject.toml; UPGRADE=1: the newest versions
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python $(PIP) install --quiet uv==$(UV_VERSION)
	$(COMPILE) --extra postgres --output-file requirements.txt
	$(COMPILE) --extra postgres --extra dev --extra sam2 --no-emit-package sam2 --constraint requirements.txt \
	  --output-file requirements-dev.txt
	sed -i -e "s/ and implementation_name .* and sys_platform == 'linux'//" \
	  -e "s/ ; python_full_version < '3.13'//" -e 's/, -c requirements.txt//' requirements.txt requirements-dev.txt

install: .venv/installed-dev .venv-label-studio/installed-$(LABEL_STUDIO_VERSION) ## all that the other targets need, without running anything

clean: ## remove what was installed and built; data/ is kept
	rm -rf .venv .venv-label-studio .venv-audit .venv-lock build dist artifacts *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	find backend tests testing benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || \
	  { echo "Python 3.11 or 3.12 is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); say: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml requirements.txt | .venv/bin/python
	@echo "Installing the backend into .venv: PyTorch is large, this takes 2 to 10 minutes the first time."
	$(BIN)/python $(PIP) install --progress-bar $(if $(CI),off,on) $(INDEX) --constraint requirements.txt --editable .
	@touch $@

# label-studio-ml 1.0.9 pins Flask 1.1 and Werkzeug 2.0, which have known vulnerabilities and are not needed to import
# it: without its dependencies, for the adapter alone (backend/model.py). sam2 would build against a PyTorch of its own.
.venv/installed-dev: .venv/installed requirements-dev.txt
	@echo "Installing what the tests need into .venv."
	$(BIN)/python $(PIP) install --progress-bar $(if $(CI),off,on) $(INDEX) --constraint requirements-dev.txt --editable '.[dev]'
	$(BIN)/python $(PIP) install --no-deps label-studio-ml==1.0.9 label-studio-tools==0.0.4
	SAM2_BUILD_CUDA=0 $(BIN)/python $(PIP) install --no-build-isolation --constraint requirements-dev.txt --editable '.[sam2]'
	@touch $@

.venv-label-studio/installed-$(LABEL_STUDIO_VERSION):
	@echo "Installing Label Studio $(LABEL_STUDIO_VERSION) into .venv-label-studio: 1 to 3 minutes."
	$(PYTHON) -m venv .venv-label-studio
	.venv-label-studio/bin/python $(PIP) install --progress-bar $(if $(CI),off,on) label-studio==$(LABEL_STUDIO_VERSION)
	@touch $@
