# syntax=docker/dockerfile:1
# SPDX-License-Identifier: Apache-2.0

FROM rust:1.95-slim-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends libssl-dev pkg-config \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
# Only what the build reads (.dockerignore keeps the rest out): a changed document does not compile anything anew.
COPY Cargo.toml Cargo.lock ./
COPY benches benches
COPY certs certs
COPY crates crates
COPY migrations migrations
COPY src src
COPY xtask xtask
# The caches outlive the step, so a second build compiles only what changed. They are not part of the image: the program
# is copied out.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target,sharing=locked \
    cargo build --release --locked --package efgs-gateway --bin efgs-gateway --no-default-features \
 && cp target/release/efgs-gateway /usr/local/bin/

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates libssl3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin efgs \
 # A new volume takes over the owner of the folder.
 && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/efgs
COPY --from=build /usr/local/bin/efgs-gateway /usr/local/bin/
USER 10001:10001
# National backends; the admin listener is not meant to be published.
EXPOSE 8443
ENTRYPOINT ["efgs-gateway"]
CMD ["serve", "--config", "/etc/efgs/gateway.toml"]
