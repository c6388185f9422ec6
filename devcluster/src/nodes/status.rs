//! Pod status as a kubelet reports it: a pure function of what runs and what was reported before.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

/// What a pod's containers do. They start and end together: a simulated pod is one runtime.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum State {
    /// Not running, with the reason that `kubectl get pods` shows.
    Waiting { reason: String, message: Option<String> },
    /// Running since then.
    Running { since: Timestamp },
    /// Ended for good.
    Ended(Ended),
}

/// How containers ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ended {
    pub(super) code: i32,
    pub(super) reason: String,
    pub(super) message: Option<String>,
    pub(super) started: Option<Timestamp>,
    pub(super) finished: Timestamp,
}

/// Everything that a status is made of.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct View {
    pub(super) state: State,
    pub(super) last: Option<Ended>,
    pub(super) restarts: i32,
    pub(super) ready: bool,
    pub(super) started: bool,
    pub(super) pod_ip: Option<String>,
    pub(super) start_time: Timestamp,
}

/// The `status` to patch onto the pod.
pub(super) fn build(pod: &Pod, view: &View, now: Timestamp) -> Value {
    let phase = match &view.state {
        State::Waiting { .. } if view.restarts == 0 && view.last.is_none() => "Pending",
        State::Waiting { .. } | State::Running { .. } => "Running",
        State::Ended(ended) if ended.code == 0 => "Succeeded",
        State::Ended(_) => "Failed",
    };
    let spec = pod.spec.as_ref();
    let containers = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
    let names: Vec<&str> = containers.iter().map(|c| c.name.as_str()).collect();
    let running = matches!(view.state, State::Running { .. });
    let containers_ready = running && view.ready;
    let gates_met = spec.and_then(|s| s.readiness_gates.as_deref()).unwrap_or_default().iter().all(|gate| {
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        conditions.iter().any(|c| c.type_ == gate.condition_type && c.status == "True")
    });
    let not_ready = match &view.state {
        State::Ended(ended) if ended.code == 0 => Some(("PodCompleted", String::new())),
        State::Ended(_) => Some(("PodFailed", String::new())),
        _ if containers_ready => None,
        _ => Some(("ContainersNotReady", format!("containers with unready status: [{}]", names.join(" ")))),
    };
    let initialized = match &view.state {
        State::Ended(ended) if ended.code == 0 => Some(("PodCompleted", String::new())),
        _ => None,
    };
    let ready = not_ready.clone().or_else(|| {
        (!gates_met).then(|| {
            ("ReadinessGatesNotReady", "the status of pod readiness gates is not \"True\"".to_owned())
        })
    });
    let conditions = [
        condition(pod, "PodReadyToStartContainers", running, None, now),
        condition(pod, "Initialized", true, initialized, now),
        condition(pod, "Ready", ready.is_none(), ready, now),
        condition(pod, "ContainersReady", containers_ready, not_ready, now),
        condition(pod, "PodScheduled", true, None, now),
    ];
    let mut status = json!({
        "phase": phase,
        "startTime": rfc3339(view.start_time),
        "hostIP": "127.0.0.1",
        "hostIPs": [{"$patch": "replace"}, {"ip": "127.0.0.1"}],
        "qosClass": qos(pod),
        "conditions": conditions,
        "containerStatuses": containers.iter().map(|container| {
            let image = container.image.clone().unwrap_or_default();
            json!({
                "name": container.name,
                "image": image,
                "imageID": format!("simulated://{image}"),
                "ready": containers_ready,
                "started": view.started && running,
                "restartCount": view.restarts,
                "state": state(&view.state),
                "lastState": view.last.as_ref().map_or_else(|| json!({}), |last| json!({"terminated": ended(last)})),
            })
        }).collect::<Vec<_>>(),
    });
    if let Some(ip) = &view.pod_ip {
        status["podIP"] = json!(ip);
        status["podIPs"] = json!([{"$patch": "replace"}, {"ip": ip}]);
    }
    status
}

fn state(state: &State) -> Value {
    match state {
        State::Waiting { reason, message: None } => json!({"waiting": {"reason": reason}}),
        State::Waiting { reason, message: Some(message) } => {
            json!({"waiting": {"reason": reason, "message": message}})
        }
        State::Running { since } => json!({"running": {"startedAt": rfc3339(*since)}}),
        State::Ended(end) => json!({"terminated": ended(end)}),
    }
}

fn ended(ended: &Ended) -> Value {
    let mut out = json!({
        "exitCode": ended.code,
        "reason": ended.reason,
        "startedAt": ended.started.map(rfc3339),
        "finishedAt": rfc3339(ended.finished),
    });
    if let Some(message) = &ended.message {
        out["message"] = json!(message);
    }
    out
}

/// One condition; its transition time stays while its status does.
fn condition(pod: &Pod, kind: &str, met: bool, why: Option<(&str, String)>, now: Timestamp) -> Value {
    let status = if met { "True" } else { "False" };
    let before = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let same = before.iter().find(|c| c.type_ == kind && c.status == status);
    let since = same.and_then(|c| c.last_transition_time.as_ref()).map_or(now, |t| t.0);
    let (reason, message) = match why {
        Some((reason, message)) => {
            (json!(reason), if message.is_empty() { Value::Null } else { json!(message) })
        }
        None => (Value::Null, Value::Null),
    };
    json!({
        "type": kind, "status": status, "lastTransitionTime": rfc3339(since), "lastProbeTime": null,
        "reason": reason, "message": message,
    })
}

/// A time as Kubernetes writes it: whole seconds, UTC.
pub(super) fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The quality-of-service class that the requests of a pod give it.
fn qos(pod: &Pod) -> &'static str {
    let containers = pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default();
    let (mut any, mut all) = (false, true);
    for container in containers {
        for name in ["cpu", "memory"] {
            let resources = container.resources.as_ref();
            let limit = resources.and_then(|r| r.limits.as_ref()?.get(name));
            let request = resources.and_then(|r| r.requests.as_ref()?.get(name)).or(limit);
            any |= limit.is_some() || request.is_some();
            all &= limit.is_some() && limit == request;
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
