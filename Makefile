# Every command of the README. `make` alone sets up .venv; `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := setup

export SCOREHOUSE_DATA ?= $(CURDIR)/data
export SCOREHOUSE_PROJECT ?= $(CURDIR)/dbt_project

# Everything that any tool writes goes under SCOREHOUSE_DATA (or .venv), and nothing is reported to anybody. Python alone
# keeps its bytecode beside the modules, as every command would begin 1.5 s later without.
export DO_NOT_TRACK := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
CACHE := $(abspath $(SCOREHOUSE_DATA))/cache
export PIP_CACHE_DIR ?= $(CACHE)/pip
export XDG_CACHE_HOME := $(CACHE)
export MPLCONFIGDIR := $(CACHE)/matplotlib

PYTHON ?= python3
BIN := .venv/bin
IS_SAMPLE := $(filter $(CURDIR)/dbt_project,$(abspath $(SCOREHOUSE_PROJECT)))
SQL := $(SCOREHOUSE_PROJECT)/models $(wildcard $(SCOREHOUSE_PROJECT)/tests/*.sql) \
	$(if $(IS_SAMPLE),tests/projects/loans/models tests/projects/card_tier)

.PHONY: setup run jobs backfill sets versions train promote rollback generations push rescore key keys revoke leaks test check check-project check-types serve ui bench days lock format clean help

setup: .venv/installed  ## set up .venv from requirements.lock (done again only when that file changes)

.venv/installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("Scorehouse needs Python 3.11 or newer; " + sys.executable + " is " + sys.version.split()[0] + ". Say which to use: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	@echo "Setting up .venv from requirements.lock; this takes a minute or two, once."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements.lock
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	@touch $@

lock: .venv/installed  ## write requirements.lock from pyproject.toml (make lock UPGRADE=1 with the newest versions)
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet $(if $(UPGRADE),--upgrade) --output-file requirements.lock

run: setup  ## load, build, train, gate, score, publish, report (make run FULL_REFRESH=1 builds all models from scratch)
	@$(BIN)/python -m orchestration.run $(if $(FULL_REFRESH),--full-refresh)

backfill: setup  ## build as-of dates again, and what comes of them (make backfill FROM=2017-06-05 TO=2017-07-03)
	@test -n "$(FROM)$(TO)" || { echo "make backfill: say which as-of dates: FROM=YYYY-MM-DD TO=YYYY-MM-DD, or one of them for one date"; exit 2; }
	@$(BIN)/python -m orchestration.run $(if $(FROM),--as-of-from $(FROM)) $(if $(TO),--as-of-to $(TO))

jobs: setup  ## score the uploaded jobs that wait, now (make ui does so as they come)
	@$(BIN)/python -m orchestration.jobs

sets: setup  ## what each model version was trained on, and whether that can be had again
	@$(BIN)/python -m orchestration.training_sets

# What is asked for reaches these by the environment: a reason may hold whatever signs a shell would read.
versions: setup  ## every version: metrics, gate, who promoted it and why (make versions SCORE=…)
	@$(BIN)/python -m orchestration.promoting list --score "$$SCORE"

train: setup  ## trains a score now, whatever its retrain: says (make train SCORE=… REASON="…")
	@$(BIN)/python -m orchestration.promoting train --score "$$SCORE" --reason "$$REASON"

promote: setup  ## a version becomes champion whatever its gate said (make promote SCORE=… VERSION=… REASON="…")
	@$(BIN)/python -m orchestration.promoting promote --score "$$SCORE" --version "$$VERSION" --reason "$$REASON"

rollback: setup  ## back to the champion before, or to VERSION=…; GENERATION=previous|<name>: what is served, at once (make rollback SCORE=… REASON="…")
ifneq ($(GENERATION),)  # needs no warehouse
	@$(BIN)/python -m serving.generations rollback --score "$$SCORE" --generation "$$GENERATION" --reason "$$REASON"
else
	@$(BIN)/python -m orchestration.promoting rollback --score "$$SCORE" --version "$$VERSION" --reason "$$REASON"
endif

generations: setup  ## what is published: each generation, which is served, sound, withdrawn (make generations SCORE=…)
	@$(BIN)/python -m serving.generations list --score "$$SCORE"

push: setup  ## what is served to other hosts: uploads it where they pull from (make push TO=s3://bucket/prefix)
	@$(BIN)/python -m serving.generations push "$$TO"

rescore: setup  ## all predictions of a score's champion are made anew and published (make rescore SCORE=…)
	@$(BIN)/python -m orchestration.promoting rescore --score "$$SCORE"

serve: setup  ## API and pages on 127.0.0.1:8000
	@$(BIN)/python -m serving

key: setup  ## an API key, shown once (make key NAME=crm MAY="read predict" SCORES=… EXPIRES=2027-01-31 RATE=200 BURST=400)
	@$(BIN)/python -m serving.guarding.keys create "$$NAME" $(if $(MAY),--may "$$MAY") --scores "$$SCORES" --expires "$$EXPIRES" --rate "$$RATE" --burst "$$BURST"

keys: setup  ## all API keys, without their secrets
	@$(BIN)/python -m serving.guarding.keys list

revoke: setup  ## an API key is refused from now on (make revoke KEY=<id or name>)
	@$(BIN)/python -m serving.guarding.keys revoke "$$KEY"

ui: setup  ## Dagster UI on 127.0.0.1:3000
	@$(BIN)/python -m orchestration.ui

leaks: setup  ## do features use what was known later? (make leaks MODEL=… AS_OF="2024-05-01 …" SCRAMBLE=1)
	@$(BIN)/python -m orchestration.leaks $(if $(MODEL),--model $(MODEL)) $(if $(AS_OF),--as-of $(AS_OF)) $(if $(SCRAMBLE),--scramble)

check: setup  ## dbt parse and the declarations, ruff, import-linter, mypy, sqlfluff; of another project its declarations and SQL
	@$(MAKE) --no-print-directory --jobs 2 check-project $(if $(IS_SAMPLE),check-types)

check-project:
	@$(BIN)/python -m orchestration.project
ifneq ($(IS_SAMPLE),)  # who writes another project has not changed the engine
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo --cache-dir $(CACHE)/import-linter
	@SCOREHOUSE_PROJECT=tests/projects/loans SCOREHOUSE_DATA=$(SCOREHOUSE_DATA)/check $(BIN)/python -m orchestration.project
endif
	@$(BIN)/sqlfluff lint --quiet --config pyproject.toml $(SQL)

check-types:
	@$(BIN)/mypy

test: check  ## all of check, and every test
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder --durations 20

bench: setup  ## every benchmark, quickly (make bench FULL=1 for the stated sizes)
	@for script in benchmarks/*.py; do $(BIN)/python $$script $(if $(FULL),--full,--quick) || exit 1; done

days: setup  ## the sample company's daily life, from PostgreSQL, NATS, files and the API (make days DAYS=5 HOUSEHOLDS=60)
	@$(BIN)/python -m tests.daily_life $(if $(DAYS),--days $(DAYS)) $(if $(HOUSEHOLDS),--households $(HOUSEHOLDS))

format: setup  ## let ruff and sqlfluff put code in order
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .
	@$(BIN)/sqlfluff fix --quiet --config pyproject.toml $(SQL)

clean:  ## remove .venv and all data
	rm -rf .venv "$(SCOREHOUSE_DATA)"

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 16
