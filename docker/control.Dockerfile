# The control side: create, watch, compare and report studies, and optuna-dashboard. No torch, no CUDA.
#   docker build -f docker/control.Dockerfile -t mathverify-sweep-control .
FROM python:3.12-slim-bookworm

WORKDIR /opt/mathverify-sweep
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY mathverify_sweep ./mathverify_sweep
COPY storage ./storage
COPY sweeps ./sweeps
RUN pip install --no-cache-dir -c constraints.txt .

# A named volume takes the owner of the folder it covers.
RUN useradd --create-home --uid 10001 mvsweep && install -d -o mvsweep /output /cache/huggingface
ENV MVSWEEP_OUTPUT=/output HF_HOME=/cache/huggingface
VOLUME ["/output", "/cache/huggingface"]
USER mvsweep
WORKDIR /output

EXPOSE 8080
ENTRYPOINT ["mvsweep"]
CMD ["--help"]
