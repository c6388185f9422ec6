use rstest::rstest;

use super::*;

fn now() -> Timestamp {
    "2024-01-10T00:00:00Z".parse().unwrap()
}

fn cells(kind: &GroupKind, printer: Option<&Value>, object: Value) -> Value {
    let columns = columns_for(kind, printer).unwrap();
    render(&columns, &[object], IncludeObject::Metadata, now())["rows"][0]["cells"].clone()
}

#[rstest]
#[case(0, "0s")]
#[case(-1, "0s")]
#[case(-5, "<invalid>")]
#[case(119, "119s")]
#[case(120, "2m")]
#[case(150, "2m30s")]
#[case(599, "9m59s")]
#[case(600, "10m")]
#[case(179 * 60, "179m")]
#[case(3 * 3600, "3h")]
#[case(3 * 3600 + 300, "3h5m")]
#[case(8 * 3600, "8h")]
#[case(47 * 3600, "47h")]
#[case(48 * 3600, "2d")]
#[case(50 * 3600, "2d2h")]
#[case(8 * 86400, "8d")]
#[case(730 * 86400, "2y")]
#[case(740 * 86400, "2y10d")]
#[case(2920 * 86400, "8y")]
fn ages(#[case] seconds: i64, #[case] want: &str) {
    // One second into the future counts as now: clocks differ.
    assert_eq!(human_duration(jiff::SignedDuration::from_secs(seconds)), want);
}

#[rstest]
#[case(".spec.a", json!(1))]
#[case("spec.a", json!(1))]
#[case("{.spec.a}", json!(1))]
#[case(".metadata.labels['x.dev/y']", json!("L"))]
#[case(r".metadata.labels.x\.dev/y", json!("L"))]
#[case(".list[0].n", json!(10))]
#[case(".list[-1].n", json!(20))]
#[case(".list[*].n", json!(10))]
#[case(r#".list[?(@.t=="B")].n"#, json!(20))]
#[case(r#".list[?(@.t == 'B')].n"#, json!(20))]
#[case(r#".list[?(@.n>15)].t"#, json!("B"))]
#[case(r#".list[?(@.m)].t"#, Value::Null)]
#[case(".missing.deep", Value::Null)]
fn paths(#[case] path: &str, #[case] want: Value) {
    let object = json!({"metadata": {"labels": {"x.dev/y": "L"}}, "spec": {"a": 1},
        "list": [{"t": "A", "n": 10}, {"t": "B", "n": 20}]});
    let found = jsonpath::JsonPath::parse(path).unwrap();
    assert_eq!(found.first(&object).cloned().unwrap_or(Value::Null), want);
}

#[rstest]
#[case(".a[")]
#[case(".a[x]")]
#[case("..a")]
#[case(".a[?(b==1)]")]
#[case(".a[?(@.b==c)]")]
fn bad_paths(#[case] path: &str) {
    assert!(jsonpath::JsonPath::parse(path).is_err());
}

#[test]
fn custom_columns_convert_by_type() {
    let printer = json!([
        {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
        {"name": "Cost", "type": "number", "jsonPath": ".status.usd"},
        {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
        {"name": "Since", "type": "date", "jsonPath": ".status.since"},
        {"name": "Blank", "type": "string", "jsonPath": ".status.none", "priority": 1},
        {"name": "Shape", "type": "string", "jsonPath": ".spec.shape"},
    ]);
    let object = json!({"metadata": {"name": "x"}, "spec": {"replicas": 3, "shape": {"tp": 2}}, "status": {
        "usd": 1.5, "conditions": [{"type": "Ready", "status": "True"}], "since": "2024-01-09T00:00:00Z"}});
    let kind = GroupKind::new("plimsoll.dev", "ModelPool");
    assert_eq!(cells(&kind, Some(&printer), object), json!(["x", 3, 1.5, "True", "24h", null, "{\"tp\":2}"]));
    let columns = columns_for(&kind, Some(&printer)).unwrap();
    assert_eq!(columns[5].priority, 1);
    let error = columns_for(&kind, Some(&json!([{"name": "a", "type": "string"}]))).unwrap_err();
    assert_eq!(error.to_string(), "additionalPrinterColumns[0].jsonPath: Required value");
}

#[test]
fn unknown_kinds_have_name_and_age() {
    let object = json!({"metadata": {"name": "x", "creationTimestamp": "2024-01-09T23:59:30Z"}});
    assert_eq!(cells(&GroupKind::new("x.dev", "X"), None, object), json!(["x", "30s"]));
}

#[rstest]
#[case::running(json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
    "containerStatuses": [{"ready": true, "restartCount": 0, "state": {"running": {}}}]}), json!(null), "1/1", "Running", "0")]
#[case::backoff(json!({"phase": "Running", "containerStatuses": [{"ready": false, "restartCount": 3,
    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    "lastState": {"terminated": {"finishedAt": "2024-01-09T23:59:00Z"}}}]}), json!(null), "0/1", "CrashLoopBackOff", "3 (60s ago)")]
#[case::done(json!({"phase": "Succeeded", "containerStatuses": [{"ready": false, "restartCount": 0,
    "state": {"terminated": {"reason": "Completed", "exitCode": 0}}}]}), json!(null), "0/1", "Completed", "0")]
#[case::terminating(json!({"phase": "Running", "containerStatuses": [{"ready": true, "restartCount": 0, "state": {"running": {}}}]}),
    json!("2024-01-10T00:00:00Z"), "1/1", "Terminating", "0")]
#[case::pending(json!({"phase": "Pending"}), json!(null), "0/1", "Pending", "0")]
#[case::evicted(json!({"phase": "Failed", "reason": "Evicted"}), json!(null), "0/1", "Evicted", "0")]
#[case::init(json!({"phase": "Pending", "initContainerStatuses": [{"state": {"running": {}}}]}), json!(null), "0/1", "Init:0/1", "0")]
fn pods(
    #[case] status: Value,
    #[case] deleted: Value,
    #[case] ready: &str,
    #[case] shown: &str,
    #[case] restarts: &str,
) {
    let mut object = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}], "initContainers": [{}]}, "status": status});
    if !deleted.is_null() {
        object["metadata"]["deletionTimestamp"] = deleted;
    }
    let got = cells(&GroupKind::new("", "Pod"), None, object);
    assert_eq!((&got[1], &got[2], &got[3]), (&json!(ready), &json!(shown), &json!(restarts)));
    assert_eq!(got[5], "<none>");
}

#[test]
fn nodes_services_and_events() {
    let node = json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/gpu": ""}}, "spec": {"unschedulable": true},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1.35.0"},
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]}});
    let got = cells(&GroupKind::new("", "Node"), None, node);
    assert_eq!(
        got,
        json!([
            "n",
            "Ready,SchedulingDisabled",
            "gpu",
            "<unknown>",
            "v1.35.0",
            "127.0.0.1",
            "<none>",
            "<unknown>",
            "<unknown>",
            "<unknown>"
        ])
    );
    let service = json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.0.0.1", "selector": {"a": "b"},
        "ports": [{"port": 80}, {"port": 53, "protocol": "UDP", "nodePort": 30053}]}});
    let got = cells(&GroupKind::new("", "Service"), None, service);
    assert_eq!(
        got,
        json!(["s", "ClusterIP", "10.0.0.1", "<none>", "80/TCP,53:30053/UDP", "<unknown>", "a=b"])
    );
    let event = json!({"metadata": {"name": "e"}, "type": "Warning", "reason": "FailedScheduling", "message": "no\n", "count": 4,
        "involvedObject": {"kind": "Pod", "name": "p"}, "lastTimestamp": "2024-01-09T23:59:00Z", "firstTimestamp": "2024-01-09T23:00:00Z",
        "source": {"component": "scheduler"}});
    let got = cells(&GroupKind::new("", "Event"), None, event);
    assert_eq!(
        got,
        json!(["60s", "Warning", "FailedScheduling", "pod/p", "", "scheduler", "no", "60m", 4, "e"])
    );
}

#[test]
fn rows_carry_what_was_asked_for() {
    let columns = columns_for(&GroupKind::new("", "ConfigMap"), None).unwrap();
    let object = json!({"metadata": {"name": "c"}, "data": {"a": "b"}});
    let row = |include| render(&columns, std::slice::from_ref(&object), include, now())["rows"][0].clone();
    assert_eq!(row(IncludeObject::Metadata)["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(row(IncludeObject::Object)["object"], object);
    assert_eq!(row(IncludeObject::None).get("object"), Some(&Value::Null));
    assert_eq!(row(IncludeObject::None)["cells"][1], 1);
}
