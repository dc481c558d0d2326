# jzi in a container, for the CPU:  docker build -t jzi .
# With CUDA:  docker build -t jzi --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 .
# PyTorch is that of the configured package index, which on Linux brings its CUDA libraries; for a small image without
# them, name PyTorch's index for CPUs:  --build-arg TORCH_INDEX=URL
#
#   docker run --rm -v "$PWD/my-city:/area" jzi locate photo.jpg
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/my-city:/area" -e JZI_TOKEN jzi serve --host 0.0.0.0
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/jzi
COPY constraints.txt /src/
ARG TORCH_INDEX=""
# PyTorch by itself: its layer is large, and stays the same when jzi changes
RUN /opt/jzi/bin/pip install --no-cache-dir -c /src/constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY . /src/
RUN /opt/jzi/bin/pip install --no-cache-dir -c /src/constraints.txt '/src[dataset,remote,retrieve,serve]'

FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner=1000 --group=1000 /home/jzi /area
COPY --from=build /opt/jzi /opt/jzi
ENV HOME=/home/jzi PATH=/opt/jzi/bin:$PATH PYTHONUNBUFFERED=1
# By number: some bases have a user with this id already
USER 1000:1000
VOLUME /area
WORKDIR /area
EXPOSE 8000
ENTRYPOINT ["jzi"]
CMD ["--help"]
