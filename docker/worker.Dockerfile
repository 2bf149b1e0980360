# A worker: trains on one GPU. The host needs an NVIDIA driver for CUDA 13 (580 or newer) and the NVIDIA container toolkit.
#   docker build -f docker/worker.Dockerfile -t mathverify-sweep-worker .
#
# `base`, not `runtime`: the wheel of torch brings the CUDA libraries that torch and bitsandbytes load.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04

# gcc and Python's headers: Triton, which comes with torch, compiles a launcher for each kernel.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu keeps pip out of its own Python.
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

WORKDIR /opt/mathverify-sweep
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY mathverify_sweep ./mathverify_sweep
COPY storage ./storage
COPY sweeps ./sweeps
RUN pip install --no-cache-dir -c constraints.txt .[worker,cuda]

# A named volume takes the owner of the folder it covers.
RUN useradd --create-home --uid 10001 mvsweep && install -d -o mvsweep /output /cache/huggingface
ENV MVSWEEP_OUTPUT=/output HF_HOME=/cache/huggingface
VOLUME ["/output", "/cache/huggingface"]
USER mvsweep
WORKDIR /output

ENTRYPOINT ["mvsweep"]
CMD ["--help"]
