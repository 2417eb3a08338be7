# Every target sets up .venv by itself. On Linux, PyPI's torch carries CUDA (2.5 GB); for the CPU build:
#   make train PIP_EXTRA_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu'

PYTHON ?= python3
PIP_EXTRA_ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
CONFIG ?= deploy/shapes.yaml

.PHONY: train test slow check manifests bench-rewards shapes format

train: $(STAMP)        ## fine-tune the embedded model: minutes on two CPU cores
	$(BIN)/sharpen train $(CONFIG) $(ARGS)

test: check            ## what CI runs
	$(BIN)/python -m pytest -m 'not slow' $(ARGS)

slow: $(STAMP)         ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow $(ARGS)

check: $(STAMP)        ## lint, format, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

manifests: $(STAMP)    ## Serve configs, images and every overlay of k8s/, checked without a cluster
	$(BIN)/python -m pytest -q -m 'not slow' tests/k8s $(ARGS)

bench-rewards: $(STAMP) ## what the way to a reward costs; writes runs/bench/rewards.json
	$(BIN)/python -m tests.bench_rewards

format: $(STAMP)       ## rewrite what ruff can rewrite
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

shapes: $(STAMP)       ## remake the embedded default (models and prompts) from its seed
	$(BIN)/python -m deploy.shapes.make

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_EXTRA_ARGS) -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install $(PIP_EXTRA_ARGS) -c constraints.txt -e '.[dev]'
	touch $(STAMP)
