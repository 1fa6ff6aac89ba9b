# The image of a node: what `addp launch --backend kubernetes --image NAME` starts, with CUDA 13.
#
#   docker build --tag registry.example/addp:1 .
#   docker run --rm registry.example/addp:1 addp version
#
# Each step copies only what it needs, the heaviest first: a change of the code takes seconds.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS environment
RUN python -m venv /opt/addp
ENV PATH=/opt/addp/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /source
# PyTorch for CUDA and the xformers built for it: several GiB, which change with a new pin only.
COPY requirements-gpu.txt ./
RUN pip install --requirement requirements-gpu.txt
COPY requirements.txt requirements-nodeps.txt ./
RUN pip install --requirement requirements.txt \
 && pip install --no-deps --requirement requirements-nodeps.txt
COPY pyproject.toml README.md LICENSE ./
COPY model ./model
COPY data_pipeline ./data_pipeline
COPY trainer ./trainer
COPY cluster ./cluster
RUN pip install --no-deps --no-build-isolation .

FROM python:${PYTHON}
# A compiler for Triton, which makes kernels when they are first used, and the libraries without
# which NCCL does not find InfiniBand, and takes the slow network without a word.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends \
      gcc libc6-dev ibverbs-providers libibverbs1 librdmacm1 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --user-group --create-home addp
COPY --from=environment /opt/addp /opt/addp
ENV PATH=/opt/addp/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TORCH_EXTENSIONS_DIR=/home/addp/.cache/torch_extensions
USER 1000:1000
WORKDIR /home/addp
CMD ["addp", "--help"]
