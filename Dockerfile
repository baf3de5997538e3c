FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
# The commit that `tidings --version` names: git's folder is not copied.
ARG SOURCE_COMMIT
# The cache mount keeps compiled dependencies, so that a source change rebuilds only the sources.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked --bin tidings \
    && install -D target/release/tidings /out/tidings

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin tidings
COPY --from=build /out/tidings /usr/local/bin/tidings
USER tidings
# The default, loopback, is unreachable from outside the container. This overrides server.listen in a mounted file.
ENV TIDINGS_SERVER__LISTEN=0.0.0.0:8080
EXPOSE 8080 9090
# bash is a sufficient HTTP client, so the image contains no other.
# Liveness only: without Redis, open connections are still served.
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s --retries=3 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /healthz HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3 && read -r -t 2 line <&3 && [[ $line == 'HTTP/1.1 200 '* ]]"]
# Starts the drain. `docker stop` kills the process 10 s later: longer than the default drain.window (8 s) takes.
STOPSIGNAL SIGTERM
ENTRYPOINT ["tidings"]
CMD ["serve"]
