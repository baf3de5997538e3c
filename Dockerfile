FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
# Dependencies stay compiled in the cache mount, so a change of the sources builds only the sources.
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
# The default, loopback, is out of reach from outside the container. A variable wins over a mounted file's server.listen.
ENV TIDINGS_SERVER__LISTEN=0.0.0.0:8080
EXPOSE 8080 9090
# bash speaks enough HTTP, so the image needs no client.
# Liveness only: without Redis, open connections are still served.
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s --retries=3 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /healthz HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3 && read -r -t 2 line <&3 && [[ $line == 'HTTP/1.1 200 '* ]]"]
ENTRYPOINT ["tidings"]
CMD ["serve"]
