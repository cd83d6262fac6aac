# Two commands do everything on a fresh machine: `make quickstart` and
# `make test`. Each first makes its own environment in .venv, once.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Any Python from 3.11 to 3.13; make PYTHON=/path/to/python3.12 takes another.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
EXTRAS_INSTALLED := .venv/installed-extras
PEERS_BIN := .venv-peers/bin
PEERS_INSTALLED := .venv-peers/installed-evaluation
S3_BIN := .venv-s3/bin
S3_INSTALLED := .venv-s3/installed
JAX_BIN := .venv-jax/bin
JAX_INSTALLED := .venv-jax/installed
NEWEST_BIN := .venv-newest/bin
NEWEST_INSTALLED := .venv-newest/installed
OLDEST_BIN := .venv-oldest/bin
OLDEST_INSTALLED := .venv-oldest/installed
DIST_BIN := .venv-dist/bin
DIST_INSTALLED := .venv-dist/installed
TPU_BIN := .venv-tpu/bin
TPU_INSTALLED := .venv-tpu/installed

PIP := -m pip install --quiet --disable-pip-version-check --no-input

# Tests of a class share what it sets up, so they stay in one process. Two
# processes, because each holds a TensorFlow.
PYTEST_WORKERS ?= --numprocesses 2 --dist loadscope

export TF_CPP_MIN_LOG_LEVEL ?= 3
export PYTHONUNBUFFERED := 1

# The tests that `make test-oldest` runs; all without.
OLDEST_TESTS ?=
# The tests that `make test-jax` runs. With JAX_MARK=slow: kills at random, full
# disks, two writers, workers, every recipe.
JAX_TESTS ?= tests/on_jax tests/selection tests/losses tests/models tests/runs \
  tests/evaluation tests/curation tests/inference/test_embedder.py \
  tests/data/test_stored_stages.py tests/training/test_step.py \
  tests/test_docs.py::PagesTest::test_every_recipe_runs_after_the_commands_of_its_header
JAX_MARK ?= not slow

# Where the benchmarks on real data keep sources, data and runs: 10 GB each if
# all of them are made.
ICONTEXT ?= icontext-work
PHOTOS ?= photos-work
# How many runs at a time.
JOBS ?=

.PHONY: help quickstart quickstart-jax docs dist test test-slow test-oldest test-newest test-jax test-peers bench-peers bench-rival trace tpu-compile icontext-data icontext-runs photos-data photos-runs photos-quick report clean

help: ## print this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 24

quickstart: $(INSTALLED) ## train with and without JEST on the shipped images
	@echo "quickstart: three runs and a report, some minutes on 2 cores"
	@$(BIN)/python -m examples.quickstart

quickstart-jax: $(JAX_INSTALLED) ## the same on Keras' JAX backend
	@KERAS_BACKEND=jax $(JAX_BIN)/python -m examples.quickstart --runs runs/jax

# Not --quiet, which would hide warnings from --strict, too.
docs: $(EXTRAS_INSTALLED) ## build the site into site/; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "docs: see site/index.html"

test: $(INSTALLED) ## check the format, lint and run the tests
	@echo "test: format, lint, and the tests, some minutes on 2 cores"
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/python -m pytest -m "not slow" $(PYTEST_WORKERS)

test-slow: $(EXTRAS_INSTALLED) $(S3_INSTALLED) $(PEERS_INSTALLED) docs ## run the tests that take long: whole runs, kills, fuzzing, peers, S3; build the site
	@$(BIN)/python -m pytest -m slow --maxfail=3 $(PYTEST_WORKERS) \
	  --no-loadscope-reorder
	@$(S3_BIN)/python -m pytest tests/files/test_s3.py

test-oldest: $(OLDEST_INSTALLED) ## run the fast tests with the oldest versions that setup.cfg allows
	@$(OLDEST_BIN)/python -m pytest -m "not slow" $(PYTEST_WORKERS) \
	  $(OLDEST_TESTS)

test-newest: $(NEWEST_INSTALLED) ## run the fast tests with TensorFlow 2.21, which Model Garden keeps out of .venv
	@$(NEWEST_BIN)/python -m pytest -m "not slow" $(PYTEST_WORKERS)

test-jax: $(JAX_INSTALLED) ## run the tests of what also runs on Keras' JAX backend
	@KERAS_BACKEND=jax $(JAX_BIN)/python -m pytest -m "$(JAX_MARK)" \
	  $(PYTEST_WORKERS) $(JAX_TESTS)

test-peers: $(PEERS_INSTALLED) ## compare measures with CLIP_benchmark's and open_clip's
	@$(BIN)/python -m pytest tests/evaluation/test_peers.py

bench-peers: $(PEERS_INSTALLED) $(JAX_INSTALLED) ## time a step beside open_clip's, on this machine
	@echo "bench-peers: some minutes; close what else runs"
	@$(BIN)/python -m benchmarks.bench_peers

bench-rival: $(PEERS_INSTALLED) .venv/installed-icontext ## time the rival's workflow in PyTorch beside ours, on this machine
	@echo "bench-rival: six minutes; close what else runs"
	@$(BIN)/python -m benchmarks.bench_rival --work $(PHOTOS)

trace: $(INSTALLED) ## print the modules that a batch passes from record to loss
	@$(BIN)/python -m benchmarks.house --trace

tpu-compile: $(TPU_INSTALLED) ## compile the training step for TPUs, without a TPU
	@echo "tpu-compile: about a minute a case; what is done is skipped"
	@$(TPU_BIN)/python -m benchmarks.tpu_compile

dist: $(INSTALLED) $(DIST_INSTALLED) ## build the sdist and the wheel into dist/, and try them
	@rm -rf dist
	@$(BIN)/python -m pytest tests/test_packaging.py
	@$(DIST_BIN)/python -m build --outdir dist
	@$(DIST_BIN)/python -m twine check --strict dist/*
	@echo "dist: see dist/"

# The data of icons never change, so their builder stays in the history.
ICONTEXT_BUILDER := 1e7b437a04751bd2bee1b7dd0da0f83e562042ee

$(ICONTEXT)/builder:
	@mkdir -p $@.part
	@git archive $(ICONTEXT_BUILDER) benchmarks jest_tf | tar -x -C $@.part
	@mv $@.part $@

icontext-data: .venv/installed-icontext $(ICONTEXT)/builder ## build the data of the benchmark on icons
	@echo "icontext-data: 170 MB to download, then some minutes on 2 cores"
	@cd $(ICONTEXT)/builder; for command in fetch full web; do \
	  $(abspath $(BIN))/python -m benchmarks.icontext.build $$command \
	    --work $(abspath $(ICONTEXT)) || exit 1; done

icontext-runs: icontext-data ## the missing runs of the benchmark on icons
	@$(BIN)/python -m benchmarks.protocol.run icons --work $(ICONTEXT) \
	  $(JOBS:%=--jobs %)

photos-data: .venv/installed-icontext ## clone the photographs' repositories, and build their benchmark's data
	@echo "photos-data: 2 GB to clone, then some minutes on 2 cores"
	@for command in fetch data; do \
	  $(BIN)/python -m benchmarks.phototext.build $$command \
	    --work $(PHOTOS) || exit 1; done

photos-runs: photos-data ## the missing runs of the benchmark on photographs
	@$(BIN)/python -m benchmarks.protocol.run photos --work $(PHOTOS) \
	  $(JOBS:%=--jobs %)

photos-quick: photos-data ## of these, one short run a method: 20 to 30 minutes on 2 cores
	@$(BIN)/python -m benchmarks.protocol.run photos --quick \
	  --work $(PHOTOS) --jobs 2

report: .venv/installed-icontext ## tables, figures and summary of both benchmarks, from the kept results
	@$(BIN)/python -m benchmarks.protocol.report icons
	@$(BIN)/python -m benchmarks.protocol.report photos
	@$(BIN)/python -m benchmarks.protocol.report icons \
	  --figures benchmarks/icontext/results \
	  --summary benchmarks/results/summary.json
	@$(BIN)/python -m benchmarks.protocol.report photos \
	  --figures benchmarks/phototext/results \
	  --summary benchmarks/results/summary.json

clean: ## remove the environment and the caches; runs/ stays
	rm -rf .venv .venv-s3 .venv-jax .venv-newest .venv-oldest .venv-peers \
	  .venv-dist .venv-tpu \
	  build dist site *.egg-info \
	  .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "make: needs Python 3.11, 3.12 or 3.13, which TensorFlow 2.20" \
	  "is built for. '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 || true)." \
	  "Name another: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "install: TensorFlow and the rest into .venv, once; about 1 GB to" \
	  "download, 3.5 GB on disk, one to ten quiet minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python $(PIP) --editable '.[test,keras-hub,notebook]'
	@touch $@
	@echo "install: done"

.venv/installed-icontext: $(INSTALLED)
	@$(BIN)/python $(PIP) --editable '.[icontext]'
	@touch $@

# What only slow tests and the site need.
$(EXTRAS_INSTALLED): $(INSTALLED)
	@echo "install: KerasHub and MkDocs into .venv, once"
	@$(BIN)/python $(PIP) --editable '.[test,keras-hub,notebook,docs]'
	@touch $@
	@echo "install: done"

$(OLDEST_INSTALLED): setup.cfg constraints-oldest.txt
	@echo "install: the oldest versions that setup.cfg allows into" \
	  ".venv-oldest, once"
	@test -x $(OLDEST_BIN)/python || $(PYTHON) -m venv .venv-oldest
	@$(OLDEST_BIN)/python $(PIP) --constraint constraints-oldest.txt \
	  --editable '.[test]'
	@touch $@
	@echo "install: done"

# An environment that reads the packages that it lacks from .venv.
PURELIB := -c "import sysconfig; print(sysconfig.get_path('purelib'))"
define venv_beside
	@test -x $(1)/python || $(PYTHON) -m venv $(patsubst %/bin,%,$(1))
	@$(BIN)/python $(PURELIB) > \
	  "$$($(1)/python $(PURELIB))/packages_of_venv.pth"
endef

# s3fs asks for older versions of some packages, which pip cannot settle beside
# the fake S3.
$(S3_INSTALLED): $(INSTALLED)
	@echo "install: s3fs and a fake S3 into .venv-s3, once"
	$(call venv_beside,$(S3_BIN))
	@$(S3_BIN)/python $(PIP) 's3fs>=2024.12' 'moto[server]>=5'
	@touch $@
	@echo "install: done"

$(JAX_INSTALLED): $(INSTALLED)
	@echo "install: JAX into .venv-jax, once"
	$(call venv_beside,$(JAX_BIN))
	@$(JAX_BIN)/python $(PIP) 'jax>=0.10,<0.11' filelock
	@touch $@
	@echo "install: done"

# Model Garden asks for TensorFlow 2.20; pip says so, and goes on.
$(NEWEST_INSTALLED): $(INSTALLED)
	@echo "install: TensorFlow 2.21 into .venv-newest, once"
	$(call venv_beside,$(NEWEST_BIN))
	@$(NEWEST_BIN)/python $(PIP) 'tensorflow==2.21.*' 'tensorflow-text==2.21.*'
	@touch $@
	@echo "install: done"

$(DIST_INSTALLED):
	@test -x $(DIST_BIN)/python || $(PYTHON) -m venv .venv-dist
	@$(DIST_BIN)/python $(PIP) build twine
	@touch $@

# CLIP_benchmark fails with NumPy 2.4.
$(PEERS_INSTALLED): $(EXTRAS_INSTALLED)
	@echo "install: open_clip and CLIP_benchmark into .venv-peers, once"
	$(call venv_beside,$(PEERS_BIN))
	@$(PEERS_BIN)/python $(PIP) open_clip_torch==3.3.* clip_benchmark==1.6.* \
	  'numpy<2.4'
	@touch $@
	@echo "install: done"

# tensorflow-tpu is another distribution of the module `tensorflow`, so it lives
# apart; tensorflow-text asks for the distribution `tensorflow` by name.
$(TPU_INSTALLED): requirements-tpu-compile.txt
	@echo "install: TensorFlow for TPUs, JAX and libtpu into .venv-tpu, once;" \
	  "about 1 GB to download, 2.5 GB on disk"
	@test -x $(TPU_BIN)/python || $(PYTHON) -m venv .venv-tpu
	@$(TPU_BIN)/python $(PIP) -r $<
	@$(TPU_BIN)/python $(PIP) --no-deps tensorflow-text==2.20.1
	@touch $@
	@echo "install: done"
