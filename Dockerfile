# syntax=docker/dockerfile:1
# The image of outgate: the program, the C library, Mozilla's roots, and nothing else. No shell, not root.
#
#   docker build -t outgate .
#
# Only what both BuildKit and buildah 1.28 understand is used. The two bases are arguments, so that a build without access to
# their registries can name others. A release pins them by digest.
ARG RUST_IMAGE=docker.io/library/rust:1.95-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/base-nossl-debian12:nonroot

FROM ${RUST_IMAGE} AS build
WORKDIR /src
COPY . .
# The caches are mounts, not layers: a change of the sources compiles the sources alone. What is in a mount is gone after the
# step, so the program is copied out of it.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release --bin outgate \
    && cp target/release/outgate /outgate \
    && cp /usr/lib/*-linux-gnu/libgcc_s.so.1 /libgcc_s.so.1 \
    && mkdir /state

FROM ${RUNTIME_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="outgate" \
      org.opencontainers.image.description="A sidecar egress proxy for third-party API calls" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build --chown=0:0 --chmod=0555 /outgate /usr/local/bin/outgate
# The one library that it needs and this base does not have; both are Debian 12. See docs/decisions/0013.
COPY --from=build --chown=0:0 --chmod=0444 /libgcc_s.so.1 /usr/lib/libgcc_s.so.1
# So that a new volume that is mounted here belongs to the user below.
COPY --from=build --chown=65532:65532 --chmod=0755 /state /var/lib/outgate
# A number, because runAsNonRoot cannot look a name up.
USER 65532:65532
WORKDIR /
ENV OUTGATE_CONFIG=/etc/outgate/policy
# Apps; health and metrics in a pod.
EXPOSE 3128 9902
STOPSIGNAL SIGTERM
# For Docker and Compose. Kubernetes ignores it, and images in OCI format do not carry it.
HEALTHCHECK --interval=10s --timeout=2s --start-period=10s CMD ["/usr/local/bin/outgate", "probe"]
ENTRYPOINT ["/usr/local/bin/outgate"]
CMD ["run"]
