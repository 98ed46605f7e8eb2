# Two images. The default runs the main job on a CPU; `--target jetson` is built and run on a Jetson with JetPack 6.
#
#   docker build -t hnas .                     docker run --rm -v "$PWD/runs:/home/hnas/runs" hnas --target openvino-cpu --out runs/first
#   docker build --target jetson -t hnas-jetson .
#   docker run --rm --runtime nvidia -v "$PWD/runs:/home/hnas/runs" hnas-jetson check runs/first/bundle --here
#
# To install a CPU build of torch from another package index:  --build-arg PIP_EXTRA_INDEX_URL=...

ARG PYTHON_IMAGE=python:3.11-slim
# JetPack 6.1 and 6.2 bring TensorRT 10.3. For JetPack 6.0 use r8.6.2-devel, and TENSORRT_BRANCH=release/8.6 below.
ARG L4T_IMAGE=nvcr.io/nvidia/l4t-tensorrt:r10.3.0-devel

# --- jetson: runs on the device; no torch -----------------------------------------------------------------------------
# JetPack's own tensorrt module is built for Python 3.10. The libraries stay as they are. Only the thin Python binding
# is built again, from NVIDIA's published source of the same release.
FROM ${L4T_IMAGE} AS jetson-build
ARG TENSORRT_BRANCH=release/10.3
ARG PYBIND11_BRANCH=v2.13.6
ARG PIP_EXTRA_INDEX_URL
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# Base images change their packages, so a pinned apt version would break the build later.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        build-essential ca-certificates cmake git python3.11 python3.11-dev python3.11-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3.11 -m venv /opt/hnas && /opt/hnas/bin/pip install --no-cache-dir "setuptools==84.2.1"
WORKDIR /build
RUN git clone --depth 1 --branch "${TENSORRT_BRANCH}" https://github.com/NVIDIA/TensorRT.git \
    && git clone --depth 1 --branch "${PYBIND11_BRANCH}" https://github.com/pybind/pybind11.git external/pybind11 \
    && mkdir -p external/python3.11 TensorRT/parsers/onnx \
    && cp -r /usr/include/python3.11 external/python3.11/include \
    && cp /usr/include/aarch64-linux-gnu/python3.11/pyconfig.h external/python3.11/include/ \
    && cp /usr/include/aarch64-linux-gnu/NvOnnx*.h TensorRT/parsers/onnx/
WORKDIR /build/TensorRT/python
# build.sh calls python3 for setup.py, so the environment comes first on PATH.
RUN PATH="/opt/hnas/bin:${PATH}" TENSORRT_MODULE=tensorrt TRT_OSSPATH=/build/TensorRT EXT_PATH=/build/external \
        TRT_LIBPATH=/usr/lib/aarch64-linux-gnu CUDA_ROOT=/usr/local/cuda \
        PYTHON_MAJOR_VERSION=3 PYTHON_MINOR_VERSION=11 TARGET_ARCHITECTURE=aarch64 bash ./build.sh \
    && find build -name 'tensorrt-*.whl' -exec /opt/hnas/bin/pip install --no-cache-dir --no-deps {} +
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
COPY hw_profiles hw_profiles
COPY export export
COPY hnas hnas
COPY benchmarks benchmarks
RUN /opt/hnas/bin/pip install --no-cache-dir -c constraints.txt ".[tensorrt,onnxruntime]"

FROM ${L4T_IMAGE} AS jetson
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3.11 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 --groups video hnas
COPY --from=jetson-build /opt/hnas /opt/hnas
ENV PATH=/opt/hnas/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /home/hnas
ENTRYPOINT ["hnas-bench"]
CMD ["--help"]

# --- cpu: the main job. It is the last stage, so a plain build makes this one -----------------------------------------
FROM ${PYTHON_IMAGE} AS build
ARG EXTRAS=search,openvino-convert,onnxruntime-convert
ARG PIP_EXTRA_INDEX_URL
RUN python -m venv /opt/hnas
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
COPY hw_profiles hw_profiles
COPY export export
COPY hnas hnas
COPY benchmarks benchmarks
RUN /opt/hnas/bin/pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]"

FROM ${PYTHON_IMAGE} AS cpu
RUN useradd --create-home --uid 1000 hnas && mkdir /home/hnas/runs && chown hnas:hnas /home/hnas/runs
COPY --from=build /opt/hnas /opt/hnas
ENV PATH=/opt/hnas/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /home/hnas
ENTRYPOINT ["hnas-deploy"]
CMD ["--target", "openvino-cpu"]
