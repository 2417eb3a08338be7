# Reward services: Ray Serve, torch and the scorers, without anybody's weights but the embedded world's. From the
# repository's root:
#   docker build -f deploy/docker/rewards.Dockerfile -t diffusion-sharpening-rewards:0.1.0 .
# PyPI's torch carries CUDA. For CPUs: --build-arg PIP_EXTRA_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu'
FROM python:3.11.14-slim-bookworm

ARG PIP_EXTRA_ARGS=""

# KubeRay's probes call wget.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home ray \
    && install -d -o ray -g ray /app /models

WORKDIR /app

# Dependencies first: a changed line of code or of the README does not fetch them again.
COPY constraints.txt pyproject.toml ./
# hadolint ignore=SC2086
RUN touch LICENSE README.md \
    && pip install --no-cache-dir ${PIP_EXTRA_ARGS} -c constraints.txt torch==2.13.0 \
    && pip install --no-cache-dir ${PIP_EXTRA_ARGS} -c constraints.txt '.[serve]'

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
EXPOSE 8000
CMD ["serve", "run", "deploy/serve/cpu.yaml"]
