# Two commands are all that a newcomer needs: `make run` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help run test test-oracle check lint unit docs bench screenshots setup clean

ARGS ?=
# Each has its own guests: half a GiB of memory or two.
WORKERS ?= 2
# A file is one worker's. In the order of their names the quick ones come last, and no worker waits long for the other.
SHARED := --dist loadfile --no-loadscope-reorder
# Stops guests some thousand times: with the machine to itself.
ALONE := tests/guest/trace
BIN := .venv/bin

help:    ## This list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 22

run: setup    ## Boot the default guest and open the terminal UI (the report, where there is no terminal)
	@$(BIN)/kmi $(ARGS)

test: setup    ## All tests but those against other tools; ARGS="-k walk" picks some
	@$(if $(WITNESSES),.ci/install-packages $(WITNESSES))
	@$(BIN)/python .ci/fetch.py
	$(BIN)/pytest -m "not oracle" -n $(WORKERS) $(SHARED) $(or $(ARGS),--ignore $(ALONE))
	$(if $(ARGS),,$(BIN)/pytest -m "not oracle" $(ALONE))

test-oracle: setup .venv/oracle    ## Compare with drgn and crash; fetches the kernel's -dbg package (850 MB)
	@$(if $(ORACLES),.ci/install-packages $(ORACLES))
	@$(BIN)/python .ci/fetch.py --debug debian-6.1
	$(BIN)/pytest -m oracle $(ARGS)

check: setup    ## Style, types, layers and the tests that need no guest: under a minute
	@$(MAKE) -j2 --output-sync=target lint unit

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: setup
	$(BIN)/pytest -q tests/unit $(ARGS)

docs: setup .venv/docs    ## The manual, as docs/_build/html/index.html
	$(BIN)/sphinx-build -q -W docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: setup .venv/oracle    ## How fast it is, beside drgn
	@$(BIN)/kmi bench $(ARGS)

screenshots: setup    ## The pictures of the README and the manual, made anew
	@$(BIN)/python -m inspector.tui.screenshots docs/pictures

clean:    ## Remove what was made in this folder; kernels and guest images stay in the user's cache
	rm -rf .venv docs/_build build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- set-up: does only what is not done yet ----

# The package $(2), where the command $(1) or the file $(1) is missing.
need = $(if $(shell command -v $(1) || ls -d $(1) 2>/dev/null),,$(2))

# A python3 from Python 3.11 on that can make virtual environments; the one on PATH first.
PYTHON = $(firstword $(shell for python in python3 /usr/bin/python3; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python; done))

# busybox must be the static one: the guest has no libraries.
MISSING = $(strip \
	$(call need,qemu-system-x86_64,qemu-system-x86) \
	$(call need,gdb,gdb) \
	$(if $(shell test -x /bin/busybox && ! head -c 4096 /bin/busybox | grep -q ld-linux && echo static),,busybox-static) \
	$(call need,gcc,gcc) \
	$(call need,/usr/lib/*/libc.a,libc6-dev) \
	$(call need,pahole,pahole) \
	$(if $(wildcard $(BIN)/python)$(PYTHON),,python3 python3-venv))

# virtme-ng, whose QEMU is attached to, wants `file`; the others unpack memory images.
WITNESSES = $(strip $(call need,file,file) $(call need,/usr/lib/*/liblzo2.so.2,liblzo2-2) \
	$(call need,/usr/lib/*/libsnappy.so.1,libsnappy1v5))
ORACLES = $(strip $(call need,crash,crash) $(call need,makedumpfile,makedumpfile))

setup: system .venv/ready

.PHONY: system
system:
	@$(if $(MISSING),.ci/install-packages $(MISSING))

# pip takes dependency groups from 25.1 on.
.venv/ready: pyproject.toml | system
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@.ci/behind-bar "Python tools" $(BIN)/pip install --disable-pip-version-check --upgrade "pip>=25.1"
	@.ci/behind-bar "Python packages" $(BIN)/pip install --disable-pip-version-check -e . --group dev
	@touch $@

.venv/oracle .venv/docs: .venv/%: .venv/ready
	@.ci/behind-bar "Python packages ($*)" $(BIN)/pip install --disable-pip-version-check --group $*
	@touch $@
