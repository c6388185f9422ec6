//! Lists: pages, versions, selectors.

use super::{at, y};
use crate::script::Script;

pub fn lists() -> Script {
    let mut s = Script::new("lists");
    let maps = at("secrets");
    for name in ["a", "b", "c", "d", "e"] {
        s.post(
            name,
            &maps,
            y(&format!("{{metadata: {{name: {name}, labels: {{n: {name}}}}}, type: t/{name}}}")),
        );
    }
    s.get("all", &maps);
    s.get("page 1", &format!("{maps}?limit=2"));
    s.get("page 2", &format!("{maps}?limit=2&continue=@{{page 1:/metadata/continue}}"));
    s.get("page 3", &format!("{maps}?limit=2&continue=@{{page 2:/metadata/continue}}"));
    s.get("page with labels", &format!("{maps}?limit=1&labelSelector=n in (b,c,d)"));
    s.get(
        "next page with labels",
        &format!(
            "{maps}?limit=1&labelSelector=n in (b,c,d)&continue=@{{page with labels:/metadata/continue}}"
        ),
    );
    s.get("limit of all", &format!("{maps}?limit=5"));
    s.get("limit of more", &format!("{maps}?limit=500"));
    s.get("bad limit", &format!("{maps}?limit=many"));
    s.get("bad token", &format!("{maps}?continue=nonsense"));
    s.get(
        "token with version",
        &format!("{maps}?limit=2&resourceVersion=1&continue=@{{page 1:/metadata/continue}}"),
    );
    s.get("version 0", &format!("{maps}?resourceVersion=0"));
    s.get("version 0 with limit", &format!("{maps}?resourceVersion=0&limit=1"));
    s.delete("delete e", &format!("{maps}/e"), serde_json::Value::Null);
    s.get(
        "exact",
        &format!("{maps}?resourceVersion=@{{all:/metadata/resourceVersion}}&resourceVersionMatch=Exact"),
    );
    s.get(
        "not older",
        &format!(
            "{maps}?resourceVersion=@{{all:/metadata/resourceVersion}}&resourceVersionMatch=NotOlderThan"
        ),
    );
    s.get("at least", &format!("{maps}?resourceVersion=@{{all:/metadata/resourceVersion}}"));
    s.get("old page", &format!("{maps}?limit=10&continue=@{{page 1:/metadata/continue}}"));
    s.get("match without version", &format!("{maps}?resourceVersionMatch=Exact"));
    s.get("bad match", &format!("{maps}?resourceVersion=5&resourceVersionMatch=Sideways"));
    s.get("exact 0", &format!("{maps}?resourceVersion=0&resourceVersionMatch=Exact"));
    s.get("bad version", &format!("{maps}?resourceVersion=nonsense"));
    s.get("initial events of a list", &format!("{maps}?sendInitialEvents=true"));
    s.get("get with version", &format!("{maps}/a?resourceVersion=0"));
    s.get("future", &format!("{maps}?resourceVersion=99999999&resourceVersionMatch=Exact&timeoutSeconds=1"));
    s.get_as("metadata list", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", &maps);
    s.get_as(
        "metadata page",
        "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
        &format!("{maps}?limit=1"),
    );
    s.get_as(
        "metadata",
        "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
        &format!("{maps}/a"),
    );
    s.get_as(
        "metadata, else json",
        "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json",
        &format!("{maps}/a"),
    );
    s.get_as(
        "list as metadata of one",
        "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
        &maps,
    );
    s.get_as("table", "application/json;as=Table;g=meta.k8s.io;v=v1", &maps);
    s.get_as(
        "table of objects",
        "application/json;as=Table;g=meta.k8s.io;v=v1",
        &format!("{maps}/a?includeObject=Object"),
    );
    s.get_as(
        "table of nothing",
        "application/json;as=Table;g=meta.k8s.io;v=v1",
        &format!("{maps}?includeObject=None"),
    );
    s.get_as("table page", "application/json;as=Table;g=meta.k8s.io;v=v1", &format!("{maps}?limit=1"));
    s.get_as(
        "bad include",
        "application/json;as=Table;g=meta.k8s.io;v=v1",
        &format!("{maps}?includeObject=Some"),
    );
    s.get_as(
        "table of nothing there",
        "application/json;as=Table;g=meta.k8s.io;v=v1",
        &format!("{maps}/nothing"),
    );
    s.get_as("table of an empty list", "application/json;as=Table;g=meta.k8s.io;v=v1", &at("pods"));
    s.get("empty list", &at("pods"));
    s.get("list in no namespace", "/api/v1/namespaces/nowhere/secrets");
    s
}

pub fn selectors() -> Script {
    let mut s = Script::new("selectors");
    let pods = at("pods");
    for (name, labels, node) in
        [("a", "{app: x, tier: front}", ""), ("b", "{app: x}", "nodeName: n1, "), ("c", "{app: y}", "")]
    {
        s.post(name, &pods, y(&format!("{{metadata: {{name: {name}, labels: {labels}}}, spec: {{{node}containers: [{{name: c, image: i}}]}}}}")));
    }
    for (name, selector) in [
        ("equal", "app=x"),
        ("equal twice", "app==x"),
        ("unequal", "app!=x"),
        ("in", "app in (x, y)"),
        ("not in", "app notin (x)"),
        ("exists", "tier"),
        ("absent", "!tier"),
        ("greater", "app>1"),
        ("both", "app=x,tier=front"),
        ("empty value", "app="),
        ("bad", "app in x"),
        ("bad key", "a b=c"),
        ("bad value", "app=a b"),
        ("open", "app in (x"),
        ("comma", "app=x,"),
        ("long", "app=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
    ] {
        s.get(&format!("labels {name}"), &format!("{pods}?labelSelector={selector}"));
    }
    for (name, selector) in [
        ("name", "metadata.name=a"),
        ("not name", "metadata.name!=a"),
        ("namespace", "metadata.namespace={ns}"),
        ("other namespace", "metadata.namespace=default"),
        ("node", "spec.nodeName=n1"),
        ("no node", "spec.nodeName="),
        ("phase", "status.phase=Pending"),
        ("phases", "status.phase!=Succeeded,status.phase!=Failed"),
        ("unsupported", "spec.hostname=x"),
        ("bad", "metadata.name"),
        ("account", "spec.serviceAccountName=default"),
        ("scheduler", "spec.schedulerName=default-scheduler"),
        ("restart", "spec.restartPolicy=Always"),
        ("network", "spec.hostNetwork=false"),
        ("address", "status.podIP=1.2.3.4"),
    ] {
        s.get(&format!("fields {name}"), &format!("{pods}?fieldSelector={selector}"));
    }
    s.get("unsupported field of a map", &(at("configmaps") + "?fieldSelector=data.a=b"));
    s.get(
        "name of a map",
        &(at("configmaps") + "?fieldSelector=metadata.name=kube-root-ca.crt&labelSelector=!x"),
    );
    s.get("across", "/api/v1/pods?fieldSelector=metadata.namespace={ns}");
    s.get("across by node", "/api/v1/pods?fieldSelector=spec.nodeName=n1,metadata.namespace={ns}");
    s.kubectl("kubectl", "get pods -n {ns} -l app=x --field-selector=status.phase=Pending -o name", "");
    s.kubectl("kubectl, bad labels", "get pods -n {ns} -l a=b=c", "");
    s.kubectl("kubectl, bad fields", "get pods -n {ns} --field-selector=spec.hostname=x", "");
    s.kubectl("kubectl, delete", "delete pods -n {ns} -l app=y", "");
    s
}
