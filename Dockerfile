# Builds the proxy and puts it, without tools and without root, into a small image.
#
# A container is reached from outside, so with its defaults the proxy would refuse its clients: set
# CLIENT_PASSWORD, or mount a configuration with users and name it by `--config FILE`.

FROM rust:1-slim-bookworm AS build
WORKDIR /build
COPY . .
RUN cargo build --release --locked --bin profile-proxy

FROM debian:bookworm-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin profile-proxy \
    && install -d -o profile-proxy -g profile-proxy -m 0750 /var/lib/profile-proxy
COPY --from=build /build/target/release/profile-proxy /usr/local/bin/
COPY config/profile-proxy.toml /etc/profile-proxy/
COPY scripts/docker-entrypoint.sh scripts/docker-health.sh /usr/local/bin/
USER profile-proxy
WORKDIR /var/lib/profile-proxy
VOLUME /var/lib/profile-proxy
ENV PROFILE_PROXY_LISTEN=0.0.0.0:6380 \
    PROFILE_PROXY_ADMIN=0.0.0.0:9180 \
    PROFILE_PROXY_DATA_DIR=/var/lib/profile-proxy/data
EXPOSE 6380 9180
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["docker-health.sh"]
ENTRYPOINT ["docker-entrypoint.sh"]
