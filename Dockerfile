# One small image with the four programs of kvferry: router, prefill-node, decode-node, kvferry.
#
#   docker build --tag kvferry .                        with the embedded model
#   docker build --tag kvferry --target runtime .       without a model
#
# Works with BuildKit and with the classic builder: no cache mounts, layers instead. What changes rarely comes first:
# dependencies, then the crates below, then the ones above. Each step runs the same `cargo build`, so that features
# resolve alike and nothing is compiled twice.
ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim

# The workspace with every source emptied: changes when a manifest does, not when a line of code does.
FROM ${RUST_IMAGE} AS manifests
WORKDIR /src
COPY . .
RUN find . -type f ! -name Cargo.toml ! -name Cargo.lock ! -path '*/src/lib.rs' ! -path '*/src/main.rs' \
        ! -path '*/benches/*.rs' -delete \
 && find . -name '*.rs' | while read -r file; do echo 'fn main() {}' > "$file"; done \
 && find . -name lib.rs -exec truncate --size 0 {} + \
 && find . -type d -empty -delete

# The sources in the order in which they are built, each group to be one layer.
FROM ${RUST_IMAGE} AS sources
WORKDIR /src
COPY . .
RUN group() { name=$1 && shift && mkdir -p "/layers/$name" && mv "$@" "/layers/$name"; } \
 && group base transport service openai model \
 && group codec codec \
 && group nodes node prefill-node decode-node \
 && group programs router cli

FROM ${RUST_IMAGE} AS build
ENV CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0
WORKDIR /src
COPY --from=manifests /src .
RUN cargo build --release --locked

# cargo goes by modification times, and a checkout may be older than the empty sources were: hence `touch`.
COPY --from=sources /layers/base .
RUN touch transport/src/lib.rs service/src/lib.rs openai/src/lib.rs model/src/lib.rs && cargo build --release --locked

COPY --from=sources /layers/codec .
RUN touch codec/src/lib.rs && cargo build --release --locked

COPY --from=sources /layers/nodes .
RUN touch node/src/lib.rs prefill-node/src/*.rs decode-node/src/*.rs && cargo build --release --locked

COPY --from=sources /layers/programs .
RUN touch router/src/*.rs cli/src/*.rs \
 && cargo build --release --locked \
 && mkdir /programs \
 && for program in router prefill-node decode-node kvferry; do \
        strip -o "/programs/$program" "target/release/$program" || exit 1; \
    done

# Everything but programs and model, so that a new build only copies programs.
FROM ${RUNTIME_IMAGE} AS base
RUN groupadd --gid 10001 kvferry \
 && useradd --uid 10001 --gid kvferry --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin kvferry \
 && install --directory --owner=kvferry --group=kvferry --mode=0750 /certs
ENV KVFERRY_CERTS=/certs KVFERRY_MODEL=/models/tiny-llama KVFERRY_ADMIN_LISTEN=0.0.0.0:9090
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
