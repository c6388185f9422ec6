//! Watches: each is read to its end, which `timeoutSeconds` sets.

use super::{at, y};
use crate::script::Script;

const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
const TABLE: &str = "application/json;as=Table;g=meta.k8s.io;v=v1";

pub fn watches() -> Script {
    let mut s = Script::new("watches");
    let maps = at("configmaps");
    s.get("before", &maps);
    s.post("a", &maps, y("{metadata: {name: a, labels: {l: x}}}"));
    s.post("b", &maps, y("{metadata: {name: b}}"));
    s.merge("a changes", &format!("{maps}/a"), y("{data: {k: v}}"));
    s.merge("a unchanged", &format!("{maps}/a"), y("{data: {k: v}}"));
    s.merge("a leaves", &format!("{maps}/a"), y("{metadata: {labels: {l: y}}}"));
    s.merge("a comes back", &format!("{maps}/a"), y("{metadata: {labels: {l: x}}}"));
    s.merge("b gets a finalizer", &format!("{maps}/b"), y("{metadata: {finalizers: [a.b/c]}}"));
    s.delete("b marked", &format!("{maps}/b"), serde_json::Value::Null);
    s.merge("b freed", &format!("{maps}/b"), y("{metadata: {finalizers: null}}"));
    s.delete("a deleted", &format!("{maps}/a"), serde_json::Value::Null);
    let since =
        format!("{maps}?watch=1&timeoutSeconds=1&resourceVersion=@{{before:/metadata/resourceVersion}}");
    s.get("all", &since);
    s.get("by label", &(since.clone() + "&labelSelector=l=x"));
    s.get("by name", &(since.clone() + "&fieldSelector=metadata.name=b"));
    s.get_as("metadata", METADATA, &since);
    s.get_as("table", TABLE, &since);
    s.get_as(
        "table of objects",
        TABLE,
        &(since.clone() + "&includeObject=Object&fieldSelector=metadata.name=b"),
    );
    s.get(
        "watch of one",
        &format!("{maps}/a?watch=1&timeoutSeconds=1&resourceVersion=@{{before:/metadata/resourceVersion}}"),
    );
    s.get(
        "watch path",
        "/api/v1/watch/namespaces/{ns}/configmaps?timeoutSeconds=1&resourceVersion=@{before:/metadata/resourceVersion}",
    );
    s.get("too old", &format!("{maps}?watch=1&timeoutSeconds=1&resourceVersion=1"));
    s.get("bad version", &format!("{maps}?watch=1&timeoutSeconds=1&resourceVersion=nonsense"));
    s.get("from nothing", &format!("{maps}?watch=1&timeoutSeconds=1"));
    s.get("from zero", &format!("{maps}?watch=true&timeoutSeconds=1&resourceVersion=0"));
    s.get(
        "bad match",
        &format!("{maps}?watch=1&timeoutSeconds=1&resourceVersion=0&resourceVersionMatch=Exact"),
    );
    s.get(
        "match without initial events",
        &format!("{maps}?watch=1&timeoutSeconds=1&resourceVersionMatch=NotOlderThan"),
    );
    s.get("unsupported field", &format!("{maps}?watch=1&timeoutSeconds=1&fieldSelector=data.a=b"));
    s
}

pub fn initial() -> Script {
    let mut s = Script::new("initial");
    let maps = at("configmaps");
    s.post("a", &maps, y("{metadata: {name: a, labels: {l: x}}, data: {k: v}}"));
    s.post("b", &maps, y("{metadata: {name: b}}"));
    let initial = format!(
        "{maps}?watch=1&timeoutSeconds=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    );
    s.get("initial events", &initial);
    s.get("initial events from zero", &(initial.clone() + "&resourceVersion=0"));
    s.get("initial events by label", &(initial.clone() + "&labelSelector=l=x"));
    s.get_as("initial metadata", METADATA, &initial);
    s.get_as("initial table", TABLE, &initial);
    s.get(
        "no bookmarks",
        &format!("{maps}?watch=1&timeoutSeconds=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"),
    );
    s.get("no match", &format!("{maps}?watch=1&timeoutSeconds=1&sendInitialEvents=true"));
    s.get(
        "not wanted",
        &format!("{maps}?watch=1&timeoutSeconds=1&sendInitialEvents=false&resourceVersionMatch=NotOlderThan"),
    );
    s.get("empty", &(at("pods") + "?watch=1&timeoutSeconds=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"));
    s
}
