# Nodes for rewards that are vision-language models: the reward services beside vLLM, in an image of their own since
# vLLM asks for an older numpy. Needs a GPU. From the repository's root:
#   docker build -f deploy/docker/mllm.Dockerfile -t diffusion-sharpening-mllm:0.1.0 .
FROM python:3.11.14-slim-bookworm

# KubeRay's probes call wget; Triton compiles kernels with gcc when vLLM starts.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y gcc libc6-dev wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home ray \
    && install -d -o ray -g ray /app /models

WORKDIR /app

# What vLLM pins otherwise: numpy, and lark among the tools of development.
COPY constraints.txt pyproject.toml ./
RUN touch LICENSE README.md \
    && sed -i -e 's/^numpy==.*/numpy==2.3.5/' -e '/^# development/,$d' constraints.txt \
    && pip install --no-cache-dir -c constraints.txt torch==2.13.0 \
    && pip install --no-cache-dir -c constraints.txt vllm==0.32.0 '.[serve]'

COPY LICENSE README.md ./
COPY reward_services reward_services
RUN pip install --no-cache-dir --no-deps --force-reinstall . \
    && rm -rf build ./*.egg-info
COPY deploy deploy

USER 1000:1000
ENV HF_HOME=/models \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME /models
CMD ["ray", "--help"]
