# Every target does its own set-up: see scripts/setup.

# Debian keeps haproxy in /usr/sbin, which is not in the PATH of ordinary users.
export PATH := $(PATH):/usr/sbin:/sbin
export PYTHON
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test soak bench lint types layers format lock clean

help: ## say what there is
	@echo 'make TARGET [ARGS="..."]   ARGS go to the program the target runs'
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 12

setup: ## system packages, .venv, locked dependencies (every target does it first)
	@scripts/setup

demo: setup ## the whole thing on this machine's loopback: ARGS=--once runs it through and exits
	@$(BIN)/sniproxy demo $(ARGS)

test: setup ## all tests, with a real HAProxy and a real ACME test CA
	$(BIN)/python -m pytest $(ARGS)

soak: setup ## the tests that take many minutes
	$(BIN)/python -m pytest -m soak $(ARGS)

bench: setup ## measure against HAProxy's own loop
	$(BIN)/python -m bench $(ARGS)

lint: setup ## ruff: rules and format
	$(BIN)/ruff check $(ARGS) .
	$(BIN)/ruff format --check .

types: setup ## mypy
	$(BIN)/mypy $(ARGS)

layers: setup ## which package may import which
	$(BIN)/lint-imports --no-logo $(ARGS)

format: setup ## mend what ruff can mend
	$(BIN)/ruff check --fix $(ARGS) .
	$(BIN)/ruff format .

lock: setup ## resolve dependencies anew into uv.lock: ARGS=--upgrade for newer ones
	scripts/lock $(ARGS)

clean: ## remove what the targets above have made
	rm -rf .venv dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache bench/results
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
