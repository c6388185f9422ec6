use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use rstest::rstest;
use serde_json::{Value, json};

use super::status::{Ended, State, View, build};
use super::*;

#[rstest]
#[case("1", 1_000)]
#[case("250m", 250)]
#[case("1.5", 1_500)]
#[case("1Ki", 1_024_000)]
#[case("1.5Gi", 1_610_612_736_000)]
#[case("2e3", 2_000_000)]
#[case("1E", 1_000_000_000_000_000_000_000)]
#[case("1u", 1)]
#[case("0", 0)]
#[case("-1", -1_000)]
#[case("5e-1", 500)]
fn quantities(#[case] text: &str, #[case] want: i128) {
    assert_eq!(milli(text), Some(want));
}

#[rstest]
#[case("")]
#[case("x")]
#[case("1.2.3")]
#[case("1Q")]
#[case("--1")]
#[case("e99999")]
#[case("1e99999")]
fn bad_quantities(#[case] text: &str) {
    assert_eq!(milli(text), None);
}

fn node(name: &str, labels: Value, spec: Value, capacity: Value) -> Node {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}, "spec": spec,
        "status": {"capacity": capacity, "allocatable": capacity}}))
    .unwrap()
}

fn gpu_node(name: &str, gpus: u32) -> Node {
    node(
        name,
        json!({}),
        json!({}),
        json!({"nvidia.com/gpu": gpus.to_string(), "cpu": "8", "memory": "64Gi", "pods": "110"}),
    )
}

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "default"}, "spec": spec})).unwrap()
}

fn gpu_pod(gpus: u32) -> Pod {
    pod(json!({"containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": gpus.to_string()}}}]}))
}

fn place(pod: &Pod, nodes: &[Node]) -> Result<String, String> {
    let views: Vec<NodeView<'_>> =
        nodes.iter().map(|node| NodeView { node, used: Resources::new() }).collect();
    choose(pod, &views).map_err(|e| e.message)
}

#[test]
fn extended_resources_are_counted() {
    let nodes = [gpu_node("a", 8)];
    let used: Resources = [("nvidia.com/gpu".to_owned(), 5_000)].into();
    let view = NodeView { node: &nodes[0], used };
    assert_eq!(choose(&gpu_pod(3), std::slice::from_ref(&view)).unwrap(), "a");
    assert_eq!(
        choose(&gpu_pod(4), &[view]).unwrap_err().message,
        "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are available: \
         1 No preemption victims found for incoming pod."
    );
}

#[test]
fn the_message_counts_each_reason() {
    let tainted = node(
        "t",
        json!({}),
        json!({"taints": [{"key": "gpu", "value": "only", "effect": "NoSchedule"}]}),
        json!({"pods": "110"}),
    );
    let cordoned = node("c", json!({}), json!({"unschedulable": true}), json!({"pods": "110"}));
    let nodes = [gpu_node("a", 1), gpu_node("b", 1), gpu_node("d", 0), tainted, cordoned];
    assert_eq!(
        place(&gpu_pod(2), &nodes).unwrap_err(),
        "0/5 nodes are available: 1 node(s) had untolerated taint {gpu: only}, 1 node(s) were unschedulable, \
         3 Insufficient nvidia.com/gpu. preemption: 0/5 nodes are available: 5 Preemption is not helpful for scheduling."
    );
    assert_eq!(place(&gpu_pod(2), &[]).unwrap_err(), "no nodes available to schedule pods");
}

#[rstest]
#[case::selector(json!({"nodeSelector": {"zone": "b"}}), Some("b"))]
#[case::selector_misses(json!({"nodeSelector": {"zone": "z"}}), None)]
#[case::expressions(json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
    {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b", "c"]}, {"key": "spot", "operator": "DoesNotExist"}]}]}}}}), Some("b"))]
#[case::fields(json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
    {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}]}}}}), Some("b"))]
#[case::terms_are_alternatives(json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
    {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["z"]}]}, {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]}]}}}}), Some("b"))]
#[case::empty_terms_match_nothing(json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{}]}}}}), None)]
#[case::numbers(json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
    {"matchExpressions": [{"key": "generation", "operator": "Gt", "values": ["1"]}]}]}}}}), Some("b"))]
#[case::preferred(json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
    {"weight": 10, "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]}}]}}}), Some("b"))]
#[case::anything_goes(json!({}), Some("a"))]
fn affinity(#[case] extra: Value, #[case] want: Option<&str>) {
    let nodes = [
        node("a", json!({"zone": "a", "generation": "1"}), json!({}), json!({"pods": "110"})),
        node("b", json!({"zone": "b", "generation": "2"}), json!({}), json!({"pods": "110"})),
    ];
    let mut spec = json!({"containers": []});
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    assert_eq!(place(&pod(spec), &nodes).ok().as_deref(), want);
}

#[rstest]
#[case(json!([]), false)]
#[case(json!([{"operator": "Exists"}]), true)]
#[case(json!([{"key": "gpu", "operator": "Exists"}]), true)]
#[case(json!([{"key": "gpu", "value": "only"}]), true)]
#[case(json!([{"key": "gpu", "value": "other"}]), false)]
#[case(json!([{"key": "gpu", "operator": "Exists", "effect": "NoExecute"}]), false)]
fn tolerating(#[case] tolerations: Value, #[case] want: bool) {
    let tainted = node(
        "t",
        json!({}),
        json!({"taints": [{"key": "gpu", "value": "only", "effect": "NoSchedule"}]}),
        json!({"pods": "110"}),
    );
    assert_eq!(place(&pod(json!({"containers": [], "tolerations": tolerations})), &[tainted]).is_ok(), want);
}

#[test]
fn free_room_wins_and_names_break_ties() {
    let nodes = [gpu_node("b", 8), gpu_node("a", 8)];
    assert_eq!(place(&gpu_pod(1), &nodes).unwrap(), "a");
    let busy = [("nvidia.com/gpu".to_owned(), 4_000)].into();
    let views =
        [NodeView { node: &nodes[1], used: busy }, NodeView { node: &nodes[0], used: Resources::new() }];
    assert_eq!(choose(&gpu_pod(1), &views).unwrap(), "b");
}

#[test]
fn init_containers_count_by_their_maximum() {
    let spec = json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}, {"name": "b", "resources": {"requests": {"cpu": "500m"}}}],
        "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "4"}}}], "overhead": {"cpu": "100m"}});
    assert_eq!(requests(&pod(spec)).get("cpu"), Some(&4_100));
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn view(state: State) -> View {
    View { state, last: None, restarts: 0, ready: false, started: true, pod_ip: None, start_time: at(0) }
}

fn find<'v>(status: &'v Value, kind: &str) -> &'v Value {
    status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == kind).unwrap()
}

#[test]
fn statuses_follow_the_containers() {
    let pod = pod(json!({"containers": [{"name": "c", "image": "i"}]}));
    let waiting =
        build(&pod, &view(State::Waiting { reason: "ContainerCreating".into(), message: None }), at(1));
    assert_eq!(
        (waiting["phase"].as_str(), find(&waiting, "Ready")["status"].as_str()),
        (Some("Pending"), Some("False"))
    );
    assert_eq!(find(&waiting, "Ready")["message"], "containers with unready status: [c]");

    let running =
        View { ready: true, pod_ip: Some("127.0.0.1".into()), ..view(State::Running { since: at(2) }) };
    let running = build(&pod, &running, at(3));
    assert_eq!(
        (running["phase"].as_str(), find(&running, "Ready")["status"].as_str()),
        (Some("Running"), Some("True"))
    );
    assert_eq!(running["containerStatuses"][0]["state"]["running"]["startedAt"], "2023-11-14T22:13:22Z");
    assert_eq!(running["podIP"], "127.0.0.1");

    let ended =
        Ended { code: 3, reason: "Error".into(), message: None, started: Some(at(2)), finished: at(4) };
    let crash = View {
        last: Some(ended.clone()),
        restarts: 2,
        ..view(State::Waiting { reason: "CrashLoopBackOff".into(), message: None })
    };
    let crash = build(&pod, &crash, at(5));
    assert_eq!(crash["phase"], "Running");
    assert_eq!(crash["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(crash["containerStatuses"][0]["restartCount"], 2);
    assert_eq!(build(&pod, &view(State::Ended(ended.clone())), at(5))["phase"], "Failed");
    assert_eq!(build(&pod, &view(State::Ended(Ended { code: 0, ..ended })), at(5))["phase"], "Succeeded");
}

#[test]
fn transition_times_stay_while_the_status_does() {
    let mut pod = pod(json!({"containers": [{"name": "c"}]}));
    let first = build(&pod, &view(State::Running { since: at(0) }), at(1));
    pod.status = Some(serde_json::from_value(json!({"conditions": first["conditions"]})).unwrap());
    let second = build(&pod, &View { ready: true, ..view(State::Running { since: at(0) }) }, at(60));
    assert_eq!(
        find(&second, "PodScheduled")["lastTransitionTime"],
        find(&first, "PodScheduled")["lastTransitionTime"]
    );
    assert_eq!(find(&second, "Ready")["lastTransitionTime"], "2023-11-14T22:14:20Z");
}

#[test]
fn readiness_gates_hold_readiness_back() {
    let mut pod =
        pod(json!({"containers": [{"name": "c"}], "readinessGates": [{"conditionType": "x.dev/ok"}]}));
    let running = View { ready: true, ..view(State::Running { since: at(0) }) };
    let status = build(&pod, &running, at(1));
    assert_eq!(find(&status, "Ready")["reason"], "ReadinessGatesNotReady");
    assert_eq!(find(&status, "ContainersReady")["status"], "True");
    pod.status = Some(
        serde_json::from_value(json!({"conditions": [{"type": "x.dev/ok", "status": "True"}]})).unwrap(),
    );
    assert_eq!(find(&build(&pod, &running, at(1)), "Ready")["status"], "True");
}

#[test]
fn backoff_doubles_up_to_its_limit() {
    let options = Options::default();
    let waits: Vec<u64> = [0, 1, 2, 3, 4, 5, 31, 32, 400].map(|n| options.backoff(n).as_secs()).into();
    assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300, 300, 300]);
}

proptest::proptest! {
    #[test]
    fn quantities_never_panic(text in ".{0,40}") {
        let _ = milli(&text);
    }

    #[test]
    fn whole_numbers_are_exact(n in 0i64..i64::MAX) {
        proptest::prop_assert_eq!(milli(&n.to_string()), Some(i128::from(n) * 1_000));
    }
}
