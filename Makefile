# SPDX-License-Identifier: GPL-2.0-or-later
#
# The two commands of the README are `make demo` and `make test`. Each sets up what it needs once
# (tools/bootstrap.sh) and costs nothing for that from the second call on.
#
#   VENV=DIR        where the virtual environment lives (.venv)
#   PYTHON=PROGRAM  the Python to make it from (the system's own, where it is 3.11 or newer)
#   SUITE=NAME      for `make deb`: in a clean root of this release of Debian (bookworm, trixie);
#                   for `make test-pythons`: this one alone (trixie, sid)
#   AS=USER         for `make test-pythons`: as root or as user alone
#   JOBS=N          for `make test`: so many of its parts at the same time (then ARGS has no say)
#   ARGS=...        further arguments for pytest: make test ARGS='tests/unit -x'

SHELL := /bin/bash
MAKEFLAGS += --no-builtin-rules --no-print-directory

VENV ?= .venv
ARGS ?=
export VENV PYTHON

bin := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-i686 test-arches test-engines test-podman test-packages test-pythons lint generate soak bench bench-peers wheel zipapp deb clean ready-run ready-build ready-test

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo: ready-run ## the main job, seen at work with its sandbox
	@$(bin)/python -m tools.demo

test: lint ## every check that fits an everyday run
	@$(bin)/python -m $(if $(JOBS),tools.suite --jobs $(JOBS),pytest $(ARGS))

test-i686: ready-test ## as i386 programs on this kernel, the relay's whole contract too (root)
	@$(bin)/python -m pytest tests/arches/test_i686.py $(ARGS)
	@launcher=$$($(bin)/python -m tests.arches.launcher) && \
		$(bin)/python -m pytest tests/relay -k root --hardsplice $$launcher $(ARGS)

test-arches: ready-test ## on other architectures' kernels, under qemu
	@$(bin)/python -m pytest -m arches tests/arches $(ARGS)

test-engines: ready-test ## unmodified container engines, which it installs (root, network, Debian)
	@path=$$(tools/engines.sh) && PATH="$$PATH:/usr/sbin:$$path" $(bin)/python -m pytest -rs tests/engines $(ARGS)

test-podman: ready-test ## Podman's own system tests about ports, with our rootlessport (root, network, Debian)
	@tests=$$(tools/podman_tests.sh) && HARDSPLICE_PODMAN_TESTS=$$tests \
		$(bin)/python -m pytest -m upstream tests/engines $(ARGS)

test-packages: ready-test ## packages, in clean trees of distributions (root, network)
	@$(bin)/python -m pytest -m packages tests/packaging $(ARGS)

test-pythons: ready-test ## under the Pythons of Debian's releases, as root and as a user (root, network)
	@/usr/bin/python3 -m tools.pythons $(foreach suite,$(SUITE),--suite $(suite)) \
		$(foreach user,$(AS),--as $(user)) -- $(ARGS)

lint: ready-test ## ruff and mypy
	@$(bin)/ruff check --quiet
	@$(bin)/mypy --no-error-summary

generate: ready-test ## completions and references, from the tables they are made of
	@$(bin)/python -m tools.generate

soak: ready-test ## tens of thousands of connections, thousands of examples, for minutes
	@$(bin)/python -m pytest -m 'soak or hypothesis' --hypothesis-profile=soak $(ARGS)

bench: ready-test ## hardsplice and its peers side by side (ARGS=--quick, ARGS=--help)
	@$(bin)/python -m bench.run $(ARGS)

bench-peers: ## install what the benchmark compares with, and say what
	@bench/install-peers.sh

wheel: ready-build ## build the wheel, the sdist and the SBOM, in dist/, from what git tracks
	@$(bin)/python -m tools.dist

zipapp: ready-build ## build dist/hardsplice.pyz, one file that runs where Python and libseccomp are, and its SBOM
	@$(bin)/python -m tools.zipapp

deb: $(if $(SUITE),ready-test) ## build Debian's packages, in dist/, from what git tracks
	@$(if $(SUITE),$(bin),/usr/bin)/python3 -m tools.deb $(if $(SUITE),--suite $(SUITE))

clean: ## remove what the targets above made, the virtual environment included
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path '*/.git/*' -prune -exec rm -rf {} +
	@tools/bootstrap.sh clean

ready-run ready-build ready-test:
	@tools/bootstrap.sh $(@:ready-%=%)
