//! The committed gRPC code equals what the `.proto` files generate. `PLIMSOLL_REGENERATE=1` rewrites it
//! (`make generate`). The compiler is pure Rust: no `protoc` is needed here or in a build.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::path::{Path, PathBuf};

fn generate(out: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("protos");
    for (files, server) in [
        (&["plimsoll/v1/agent.proto", "plimsoll/v1/plan.proto"][..], true),
        (&["etcd/rpc.proto"], false),
        (&["envoy/ext_proc.proto", "grpc/health.proto"], true),
    ] {
        let descriptors = protox::compile(files, [&root]).unwrap();
        tonic_prost_build::configure()
            .out_dir(out)
            .build_client(true)
            .build_server(server)
            // Bodies of requests pass through without a copy.
            .bytes(".envoy")
            .compile_fds(descriptors)
            .unwrap();
    }
}

#[test]
fn committed_code_matches_the_proto_files() {
    let committed = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/generated");
    if std::env::var_os("PLIMSOLL_REGENERATE").is_some() {
        generate(&committed);
        return;
    }
    let fresh = tempfile::tempdir().unwrap();
    generate(fresh.path());
    for entry in std::fs::read_dir(fresh.path()).unwrap() {
        let entry = entry.unwrap();
        let expected = std::fs::read_to_string(entry.path()).unwrap();
        let actual = std::fs::read_to_string(committed.join(entry.file_name())).unwrap_or_default();
        assert!(actual == expected, "{:?} is stale: run `make generate`", entry.file_name());
    }
}
