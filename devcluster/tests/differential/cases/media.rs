//! Media types: what a server reads and what it answers in.

use http::Method;

use super::{at, y};
use crate::script::Script;

pub fn media() -> Script {
    let mut s = Script::new("media");
    let maps = at("configmaps");
    s.post("create", &maps, y("{metadata: {name: a}, data: {k: v}}"));
    let one = format!("{maps}/a");
    for (name, accept) in [
        ("any", "*/*"),
        ("any application", "application/*"),
        ("protobuf, else json", "application/vnd.kubernetes.protobuf,application/json"),
        ("json, else protobuf", "application/json,application/vnd.kubernetes.protobuf"),
        ("with quality", "application/json;q=0.5"),
        ("nothing known", "text/html"),
        ("unknown, else any", "text/html,*/*"),
        (
            "table, else json",
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
        ),
        ("unknown form", "application/json;as=Chair;v=v1;g=meta.k8s.io"),
        ("unknown form, else json", "application/json;as=Chair;v=v1;g=meta.k8s.io,application/json"),
        ("old table", "application/json;as=Table;v=v1beta1;g=meta.k8s.io"),
        ("yaml", "application/yaml"),
    ] {
        s.get_as(name, accept, &one);
    }
    for (name, kind, body) in [
        ("post yaml", "application/yaml", "metadata: {name: b}\ndata: {a: b}\n"),
        ("post without type", "", r#"{"metadata": {"name": "c"}}"#),
        ("post of an unknown type", "text/plain", r#"{"metadata": {"name": "d"}}"#),
        ("post with a charset", "application/json; charset=utf-8", r#"{"metadata": {"name": "e"}}"#),
        ("post broken", "application/json", r#"{"metadata": "#),
        ("post nothing", "application/json", ""),
        ("post null", "application/json", "null"),
        ("post text", "application/json", r#""text""#),
        ("post twice", "application/json", r#"{"metadata": {"name": "f"}, "metadata": {"name": "g"}}"#),
        ("post broken yaml", "application/yaml", "metadata: {name: b"),
        ("post yaml as json", "application/json", "metadata: {name: h}"),
    ] {
        let headers = [("content-type", kind)];
        s.request(name, Method::POST, &maps, if kind.is_empty() { &[] } else { &headers }, body);
    }
    let twice = r#"{"metadata": {"name": "i"}, "data": {"a": "b"}, "data": {"a": "c"}}"#;
    s.request(
        "twice, strict",
        Method::POST,
        &format!("{maps}?fieldValidation=Strict"),
        &[("content-type", "application/json")],
        twice,
    );
    s.request(
        "twice, warned",
        Method::POST,
        &format!("{maps}?fieldValidation=Warn"),
        &[("content-type", "application/json")],
        twice,
    );
    s.request("head", Method::HEAD, &one, &[], "");
    s.request("options", Method::OPTIONS, &one, &[], "");
    s.get("pretty", &format!("{one}?pretty=true"));
    s.get("slash", &format!("{maps}/"));
    s
}
