# coc_mm with its commands:
#   docker build -t coc .                       with CUDA, which comes with torch
#   docker build -t coc --build-arg CPU=1 .     without, from PyTorch's own index
#   docker run --rm --gpus all -v "$PWD:/work" coc coc infer photo.jpg CONFIG CHECKPOINT
# BASE is any image of Debian or Ubuntu, e.g. nvidia/cuda:13.0.1-runtime-ubuntu24.04; where it has
# no python3 its own (3.11 or later) is installed.
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG CPU=
ARG CPU_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=all,demo,points,export,serve,timm
ENV PATH=/opt/coc/bin:$PATH MPLBACKEND=Agg PIP_NO_CACHE_DIR=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Triton compiles a launcher; OpenCV wants the libraries.
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    gcc libc6-dev libgl1 libglib2.0-0 \
    $(command -v python3 > /dev/null || echo python3 python3-venv python3-dev) \
    && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN python3 -m venv /opt/coc \
    && if [ -n "$CPU" ]; then pip install --no-deps --index-url "$CPU_INDEX" \
        $(grep -E '^torch(vision)?==' /src/constraints.txt); fi \
    && pip install -c /src/constraints.txt "/src[$EXTRAS]" && rm -rf /src
WORKDIR /work
CMD ["coc", "--help"]
