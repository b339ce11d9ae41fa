# One small image with the four programs of kvferry: router, prefill-node, decode-node, kvferry.
#
#   docker build --tag kvferry .                        with the embedded model
#   docker build --tag kvferry --target runtime .       without a model
#   docker build --tag kvferry-gpu --build-arg CUDA_COMPUTE_CAP=90a .       for nodes with an NVIDIA GPU (docs/gpu.md)
#
# Works with BuildKit and with the classic builder: no cache mounts, layers instead. What changes rarely comes first:
# dependencies, then the crates below, then the ones above. Each step runs the same `cargo build`, so that features
# resolve alike and nothing is compiled twice.
ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim
# Cards that machine code is built for, such as 90a or 80,90a; other cards from Ampere on compile at start. Empty builds for CPUs only.
ARG CUDA_COMPUTE_CAP=

# The workspace with every source emptied: changes when a manifest does, not when a line of code does.
FROM ${RUST_IMAGE} AS manifests
WORKDIR /src
COPY . .
RUN find . -type f ! -name Cargo.toml ! -name Cargo.lock ! -path '*/src/lib.rs' ! -path '*/src/main.rs' \
        ! -path '*/benches/*.rs' ! -path '*/examples/*.rs' ! -path '*/tests/*.rs' -delete \
 && find . -name '*.rs' | while read -r file; do echo 'fn main() {}' > "$file"; done \
 && find . -name lib.rs -exec truncate --size 0 {} + \
 && find . -type d -empty -delete

# The sources in the order in which they are built, each group to be one layer.
FROM ${RUST_IMAGE} AS sources
WORKDIR /src
COPY . .
RUN group() { name=$1 && shift && mkdir -p "/layers/$name" && mv "$@" "/layers/$name"; } \
 && group base transport service openai nvcc gpu model \
 && group codec codec \
 && group nodes router node prefill-node decode-node \
 && group programs cli

# NVIDIA's compiler for the build and the one library that a node opens besides the driver; both folders stay empty without a GPU to build for.
FROM ${RUST_IMAGE} AS cuda
ARG CUDA_COMPUTE_CAP
ARG PIP_INDEX_URL
COPY deploy/cuda /deploy
RUN mkdir -p /cuda /libraries \
 && if [ -n "$CUDA_COMPUTE_CAP" ]; then \
        apt-get update && apt-get install -y --no-install-recommends python3-pip && rm -rf /var/lib/apt/lists/* \
     && /deploy/toolkit.sh /cuda && /deploy/toolkit.sh --libraries /libraries || exit 1; \
    fi

FROM ${RUST_IMAGE} AS build
ARG CUDA_COMPUTE_CAP
ENV CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0 CUDA_HOME=/cuda KVFERRY_CUDA_ARCHS=${CUDA_COMPUTE_CAP} \
    FEATURES=${CUDA_COMPUTE_CAP:+kvferry/cuda}
WORKDIR /src
# nvcc needs a C++ compiler, Rust a C compiler only.
RUN if [ -n "$CUDA_COMPUTE_CAP" ]; then \
        apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/* || exit 1; \
    fi
COPY --from=cuda /cuda /cuda
COPY --from=manifests /src .
RUN cargo build --release --locked --features "$FEATURES"

# cargo goes by modification times, and a checkout may be older than the empty sources were: hence `touch`.
COPY --from=sources /layers/base .
RUN touch transport/src/lib.rs service/src/lib.rs openai/src/lib.rs nvcc/src/lib.rs gpu/src/lib.rs model/src/lib.rs \
 && cargo build --release --locked --features "$FEATURES"

COPY --from=sources /layers/codec .
RUN touch codec/src/lib.rs && cargo build --release --locked --features "$FEATURES"

COPY --from=sources /layers/nodes .
RUN touch router/src/*.rs node/src/lib.rs prefill-node/src/*.rs decode-node/src/*.rs \
 && cargo build --release --locked --features "$FEATURES"

COPY --from=sources /layers/programs .
# kvferry is also the other three, by the names of the links to it.
RUN touch cli/src/*.rs \
 && cargo build --release --locked --features "$FEATURES" \
 && mkdir /programs \
 && strip -o /programs/kvferry target/release/kvferry \
 && for program in router prefill-node decode-node; do ln -s kvferry "/programs/$program" || exit 1; done

# Everything but programs and model, so that a new build only copies programs. For GPUs that is cuBLASLt too, 540 MB of machine code for every
# card: NVIDIA has no smaller one, and it needs neither cuBLAS nor the CUDA runtime. The driver's libcuda.so.1 is the host's.
FROM ${RUNTIME_IMAGE} AS base
RUN groupadd --gid 10001 kvferry \
 && useradd --uid 10001 --gid kvferry --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin kvferry \
 && install --directory --owner=kvferry --group=kvferry --mode=0750 /certs
COPY --from=cuda /libraries /usr/local/lib/cuda
ENV KVFERRY_CERTS=/certs KVFERRY_MODEL=/models/tiny-llama KVFERRY_ADMIN_LISTEN=0.0.0.0:9090 LD_LIBRARY_PATH=/usr/local/lib/cuda
USER kvferry
# clients (TCP), nodes (QUIC), health and metrics of a node (TCP)
EXPOSE 8080/tcp 8081/udp 9090/tcp
CMD ["kvferry", "--help"]
LABEL org.opencontainers.image.title="kvferry" \
      org.opencontainers.image.description="Disaggregated prefill/decode LLM serving with a coded KV cache" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="0.1.0"

FROM base AS runtime
COPY --from=build /programs/ /usr/local/bin/
# Shown by /health and in kvferry_build_info.
ARG KVFERRY_COMMIT
ENV KVFERRY_COMMIT=${KVFERRY_COMMIT}
LABEL org.opencontainers.image.revision="${KVFERRY_COMMIT}"

FROM base AS kvferry
COPY models/tiny-llama /models/tiny-llama
COPY --from=build /programs/ /usr/local/bin/
ARG KVFERRY_COMMIT
ENV KVFERRY_COMMIT=${KVFERRY_COMMIT}
LABEL org.opencontainers.image.revision="${KVFERRY_COMMIT}"
