# arbwork: `make demo` shows the whole of it, `make test` checks all of it, `make lab` opens the workbench.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
MADE   := $(VENV)/.made
READY  := $(VENV)/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test lab bench lock clean setup help
.DEFAULT_GOAL := help

help:
	@echo 'make demo    from recorded books to a trade, in about three minutes after installation'
	@echo 'make test    lint, export, notebooks, tests'
	@echo 'make lab     JupyterLab with the workbench'
	@echo 'make bench   speed beside peers, as ratios of one run'
	@echo 'make lock    resolve the dependencies anew'
	@echo 'make clean   remove what was written at run time, and the environment'

setup: $(READY)

# The exact packages of requirements.lock, checked by hash, into an environment of the project's own. The stamp is written last and taken away first:
# an environment without it was left half made by a run that was interrupted, and is made anew.
$(MADE): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"python 3.11 or newer is needed, found {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	@test -e $@ || rm -rf $(VENV)
	@rm -f $@ $(READY)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo 'python3 lacks venv; on Debian: apt install python3-venv'; rm -rf $(VENV); exit 1; }
	@echo 'installing into $(VENV) (once; about a minute)'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

$(READY): $(MADE)
	@echo 'compiling the kernels (once; about half a minute)'
	@$(BIN)/arbwork compile >/dev/null
	@touch $@

demo: setup
	@$(BIN)/arbwork demo

test: setup
	@$(BIN)/python tests/run.py

lab: setup
	@$(BIN)/jupyter lab --ServerApp.root_dir=$(CURDIR) --LabApp.default_url=/lab/tree/nbs/workbench.ipynb

bench: setup
	@$(BIN)/python -m bench

lock: 
	@test -x $(BIN)/uv || $(MAKE) setup
	@$(BIN)/uv pip compile --quiet pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' --upgrade -o requirements.lock

clean:
	rm -rf data/var $(VENV) .nb .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
