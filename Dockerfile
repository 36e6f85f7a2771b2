# CPU:  docker build -t robustclip .
# CUDA: docker build -t robustclip --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 .
# Then: docker run --rm robustclip make demo          (with CUDA: docker run --rm --gpus all ...)
#       docker run --rm robustclip make test
ARG BASE=debian:trixie-slim
FROM ${BASE}
# An index with torch's CPU wheels makes the CPU image gigabytes smaller.
ARG PIP_EXTRA_INDEX_URL=
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates git make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /robustclip
COPY . .
RUN make .venv/.installed
ENV PATH=/robustclip/.venv/bin:$PATH
CMD ["make", "demo"]
