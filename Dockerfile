# The image of every part: one static binary, no shell, not root. Without Docker, scripts/image makes the same.
#   docker build -t plimsoll/plimsoll:v0.1.0 .
#   docker build --build-arg FEATURES=highs …    with HiGHS for a second opinion on plans
ARG RUST_IMAGE=rust:1.95-slim-bookworm

FROM ${RUST_IMAGE} AS build
WORKDIR /src
ARG FEATURES=""
RUN if [ -n "$FEATURES" ]; then apt-get update && apt-get install -y --no-install-recommends cmake g++ libclang-dev; fi
COPY . .
# glibc, linked statically: since 2.34 it resolves names without loading anything. The target is named so that only the
# binary is linked so, not the build's own macros.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    target="$(rustc --print host-tuple)" \
 && RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked -p plimsoll --features "$FEATURES" --target "$target" \
 && mkdir -p /out/usr/local/bin /out/etc \
 && cp "target/$target/release/plimsoll" /out/usr/local/bin/plimsoll \
 && ldd /out/usr/local/bin/plimsoll 2>&1 | grep -Eq "statically linked|not a dynamic executable" \
 && echo "plimsoll:x:65532:65532::/:/sbin/nologin" > /out/etc/passwd \
 && echo "plimsoll:x:65532:" > /out/etc/group

FROM scratch
COPY --from=build /out /
# A number, so that the kubelet can see that it is not root.
USER 65532:65532
ENV PATH=/usr/local/bin
ENTRYPOINT ["/usr/local/bin/plimsoll"]
