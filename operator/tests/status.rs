//! What a pool's owner reads.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use common::*;
use plimsoll_crds::conditions::{find, same};
use plimsoll_crds::model_pool::{ModelPool, ModelPoolStatus};
use plimsoll_fleet::plan::PoolOutcome;
use plimsoll_fleet::rollout::{Rollout, Stuck};
use plimsoll_fleet::{Plan, ReplicaPhase, ReplicaStatus};
use plimsoll_operator::PoolObservation;
use plimsoll_operator::revision::Stop;
use plimsoll_operator::status::pool::{Facts, InForce, notes, status};
use plimsoll_operator::status::rollout::Progress;
use plimsoll_operator::validate::{Accepted, Rejection};

fn replica(id: &str, phase: ReplicaPhase) -> ReplicaStatus {
    ReplicaStatus {
        id: id.parse().unwrap(),
        pool: "default/chat".parse().unwrap(),
        shape: shape(2),
        nodes: vec!["gpu-1".parse().unwrap()],
        phase,
        address: None,
        plan: 1,
        since: at(1),
        created_at: at(1),
        ready_at: None,
        message: String::new(),
        outdated: false,
        revision: String::new(),
        ended: false,
        adapter_room: None,
        gated: false,
    }
}

struct Case {
    resource: ModelPool,
    plan: Option<Plan>,
    replicas: Vec<ReplicaStatus>,
    observation: Option<PoolObservation>,
    problems: Vec<String>,
    rejection: Option<Rejection>,
    rollout: Option<Progress>,
    stop: Option<Stop>,
    refresh: bool,
}

impl Case {
    fn new() -> Self {
        let resource = chat();
        let plan = plan(3, &resource, vec![assignment("chat-1", "gpu-1"), assignment("chat-2", "gpu-1")]);
        Self {
            resource,
            plan: Some(plan),
            replicas: vec![replica("chat-1", ReplicaPhase::Ready), replica("chat-2", ReplicaPhase::Ready)],
            observation: None,
            problems: Vec::new(),
            rejection: None,
            rollout: None,
            stop: None,
            refresh: false,
        }
    }

    fn status(&self, before: Option<&ModelPoolStatus>, now: i64) -> ModelPoolStatus {
        let accepted =
            Accepted { pool: self.resource.to_fleet().unwrap(), outdated: None, stop: self.stop.clone() };
        let replicas: Vec<&ReplicaStatus> = self.replicas.iter().collect();
        status(&Facts {
            resource: &self.resource,
            verdict: match &self.rejection {
                Some(r) => Err(r),
                None => Ok(&accepted),
            },
            before,
            plan: self.plan.as_ref().map(|p| InForce {
                number: p.number,
                created_at: p.created_at,
                trigger: &p.trigger,
                pool: &p.pools[0],
            }),
            replicas: &replicas,
            adopted: &[],
            rollout: self.rollout.as_ref(),
            observation: self.observation.as_ref(),
            connected: true,
            keeps_revisions: true,
            problems: &self.problems,
            refresh_observed: self.refresh,
            now: at(now),
        })
    }
}

fn is(status: &ModelPoolStatus, type_: &str) -> (String, String) {
    let c = find(&status.conditions, type_).unwrap_or_else(|| panic!("no {type_}"));
    (c.status.clone(), c.reason.clone())
}

fn pair(a: &str, b: &str) -> (String, String) {
    (a.to_owned(), b.to_owned())
}

#[test]
fn replicas_slower_than_predicted_are_said_to_be_and_later_not_to_be() {
    let mut case = Case::new();
    case.observation = Some(PoolObservation::default());
    assert!(
        find(&case.status(None, 0).conditions, "PredictionDrift").is_none(),
        "unsaid of pools that never did"
    );
    let drift = "replicas of fp8 TP2 H100 have become 1.40× slower than predicted".to_owned();
    case.observation = Some(PoolObservation { drift, ..Default::default() });
    let drifted = case.status(None, 1);
    assert_eq!(is(&drifted, "PredictionDrift"), pair("True", "SpeedChanged"));
    assert!(find(&drifted.conditions, "PredictionDrift").unwrap().message.contains("1.40× slower"));
    case.observation = None;
    let unknown = case.status(Some(&drifted), 2);
    assert_eq!(is(&unknown, "PredictionDrift"), pair("True", "SpeedChanged"), "nobody can tell");
    case.observation = Some(PoolObservation::default());
    assert_eq!(is(&case.status(Some(&unknown), 3), "PredictionDrift"), pair("False", "AsPredicted"));
}

#[test]
fn the_table_row_reads_as_promised() {
    let mut case = Case::new();
    let summary = |case: &Case| case.status(None, 0).summary.unwrap();
    let predicted = summary(&case);
    assert_eq!(predicted.ttft, "~412/800 ms");
    case.observation =
        Some(PoolObservation { rps: 3.9, ttft_ms: Some(412.4), tpot_ms: Some(31.0), ..Default::default() });
    let row = summary(&case);
    assert_eq!(
        (
            row.ready.as_str(),
            row.shape.as_str(),
            row.usd_per_hour.as_str(),
            row.ttft.as_str(),
            row.tpot.as_str(),
            row.why.as_str()
        ),
        ("2/2", "2× fp8 TP2 H100", "9.20", "412/800 ms", "31/50 ms", "cheapest; next: TP4 L40S +$1.10/h")
    );
    let status = case.status(None, 0);
    assert_eq!(is(&status, "Ready"), pair("True", "AllReplicasServe"));
    assert_eq!(is(&status, "SLOMet"), pair("True", "Met"));
    assert_eq!((status.replicas, status.ready_replicas, status.desired_replicas), (2, 2, 2));
    assert_eq!(
        (status.shapes[0].desired, status.shapes[0].ready, status.shapes[0].load_line_rps),
        (2, 2, Some(3.12))
    );
    assert_eq!(
        status.selector.as_deref(),
        Some("app.kubernetes.io/managed-by=plimsoll,plimsoll.dev/pool=chat")
    );
}

#[test]
fn a_pool_scaled_to_zero_or_without_a_fitting_shape_says_so() {
    let mut case = Case::new();
    case.replicas.clear();
    let pool = &mut case.plan.as_mut().unwrap().pools[0];
    pool.replicas.clear();
    pool.usd_per_hour = 0.0;
    pool.outcome = PoolOutcome::ScaledToZero;
    let status = case.status(None, 0);
    let row = status.summary.clone().unwrap();
    assert_eq!((row.ready.as_str(), row.shape.as_str(), row.ttft.as_str()), ("0/0", "scaled to zero", "–"));
    assert_eq!(is(&status, "Ready"), pair("True", "ScaledToZero"));
    let pool = &mut case.plan.as_mut().unwrap().pools[0];
    pool.outcome = PoolOutcome::Infeasible;
    pool.why.summary = "no shape fits: needs 671 GB of weights".to_owned();
    let status = case.status(None, 0);
    assert_eq!(is(&status, "Planned"), pair("False", "NoShapeFits"));
    assert_eq!(is(&status, "Ready").0, "False");
    assert_eq!(status.summary.unwrap().shape, "–");
    let events: Vec<_> =
        notes(&case.resource, None, &case.status(None, 0), at(0)).iter().map(|n| n.reason).collect();
    assert_eq!(events, ["NoShapeFits"]);
}

#[test]
fn a_rejected_pool_names_field_and_remedy() {
    let mut case = Case::new();
    case.plan = None;
    case.rejection = Some(Rejection { reason: "Invalid", message: "spec.x: bad; do y".to_owned() });
    let status = case.status(None, 0);
    assert_eq!(is(&status, "Accepted"), pair("False", "Invalid"));
    assert_eq!(status.summary.as_ref().unwrap().why, "spec.x: bad; do y");
    let events = notes(&case.resource, None, &status, at(0));
    assert_eq!(
        (events[0].reason, events[0].warning, events[0].message.as_str()),
        ("Invalid", true, "spec.x: bad; do y")
    );
    // The same verdict again is no news.
    assert_eq!(notes(&case.resource, Some(&status), &case.status(Some(&status), 9), at(9)), []);
}

#[test]
fn every_scaling_is_recorded_once_with_its_reason() {
    let mut case = Case::new();
    let first = case.status(None, 0);
    let events = notes(&case.resource, None, &first, at(0));
    assert_eq!(events[0].reason, "Scaled");
    assert_eq!(
        events[0].message,
        "– → 2× fp8 TP2 H100: spec changed; cheapest; next: TP4 L40S +$1.10/h (plan 3)"
    );
    // A new plan with the same fleet is no scaling.
    case.plan.as_mut().unwrap().number = 4;
    let second = case.status(Some(&first), 5);
    assert_eq!(second.scalings.len(), 1);
    // Nor is it worth a write: a plan may be made for some other pool.
    assert_eq!(second, first);
    case.plan.as_mut().unwrap().pools[0].replicas.pop();
    let third = case.status(Some(&second), 6);
    assert_eq!(
        (third.scalings[0].from.as_str(), third.scalings[0].to.as_str()),
        ("2× fp8 TP2 H100", "1× fp8 TP2 H100")
    );
    assert_eq!(notes(&case.resource, Some(&second), &third, at(6)).len(), 1);
}

#[test]
fn small_changes_of_observations_are_not_written() {
    let mut case = Case::new();
    let seen = |ttft| {
        Some(PoolObservation { rps: 4.0, ttft_ms: Some(ttft), tpot_ms: Some(30.0), ..Default::default() })
    };
    case.observation = seen(400.0);
    let first = case.status(None, 0);
    case.observation = seen(410.0);
    let second = case.status(Some(&first), 60);
    assert!(plimsoll_operator::status::pool::same(&first, &second));
    assert_eq!(second.conditions, first.conditions, "transition times are kept");
    case.refresh = true;
    assert_eq!(case.status(Some(&first), 60).observed.unwrap().ttft_ms, Some(410.0));
    case.refresh = false;
    case.observation = seen(900.0);
    let third = case.status(Some(&first), 60);
    assert_eq!(is(&third, "SLOMet"), pair("False", "Missed"));
    assert!(!same(&first.conditions, &third.conditions));
    assert!(find(&third.conditions, "SLOMet").unwrap().message.contains("TTFT p95 is 900 ms, above 800 ms"));
}

#[test]
fn what_stands_in_the_way_is_said() {
    let mut case = Case::new();
    case.replicas[1].phase = ReplicaPhase::Failed;
    case.replicas[1].message = "CrashLoopBackOff: exit code 1, 5 restarts".to_owned();
    let status = case.status(None, 0);
    assert_eq!(is(&status, "Ready"), pair("False", "ReplicaFailed"));
    assert!(
        find(&status.conditions, "Ready")
            .unwrap()
            .message
            .contains("1 of 2 replicas serve; chat-2: CrashLoopBackOff")
    );
    case.problems = vec!["failed to create replica chat-2: exceeded quota".to_owned()];
    let status = case.status(None, 0);
    assert_eq!(is(&status, "Ready"), pair("False", "ChangesRefused"));
    assert!(status.summary.unwrap().why.contains("exceeded quota"));
}

#[test]
fn limits_carry_how_much_is_unserved() {
    let mut case = Case::new();
    let pool = &mut case.plan.as_mut().unwrap().pools[0];
    pool.outcome = PoolOutcome::BudgetLimited;
    pool.why.summary = "budget team-a binds".to_owned();
    pool.unserved_rps = 1.5;
    let status = case.status(None, 0);
    assert_eq!(is(&status, "BudgetLimited"), pair("True", "BudgetBinds"));
    assert_eq!(is(&status, "CapacityLimited"), pair("False", "NotLimited"));
    assert!(status.why.iter().any(|w| w.contains("1.50 requests/s")), "{:?}", status.why);
    assert!(notes(&case.resource, None, &status, at(0)).iter().any(|n| n.reason == "BudgetLimited"));
}

#[test]
fn a_rollout_shows_its_progress_and_what_stops_it() {
    let mut case = Case::new();
    let before = case.status(None, 0);
    assert_eq!(is(&before, "Progressing"), pair("True", "UpToDate"));
    let mut rollout = Rollout {
        replaced: 1,
        total: 3,
        replacing: ["chat-1".parse().unwrap()].into(),
        next: [].into(),
        held: [].into(),
        stuck: None,
    };
    case.rollout = Some(Progress { rollout: rollout.clone(), changed: ["args", "image"].into() });
    // chat-1 serves until its successor chat-3 does.
    case.plan.as_mut().unwrap().pools[0].replicas =
        vec![assignment("chat-2", "gpu-1"), assignment("chat-3", "gpu-1")];
    case.replicas[0].outdated = true;
    case.replicas.push(replica("chat-3", ReplicaPhase::Starting));
    let going = case.status(Some(&before), 1);
    assert_eq!(going.summary.as_ref().unwrap().ready, "2/2");
    case.replicas[2].phase = ReplicaPhase::Ready;
    assert_eq!(case.status(Some(&before), 1).summary.unwrap().ready, "2/2");
    case.replicas[2].phase = ReplicaPhase::Starting;
    assert_eq!(is(&going, "Progressing"), pair("True", "RollingOut"));
    let text = "rolling out: 1/3 replaced (args, image changed)";
    assert_eq!(going.summary.as_ref().unwrap().why, text);
    assert!(going.why.iter().any(|l| l == text), "{:?}", going.why);
    let events = notes(&case.resource, Some(&before), &going, at(1));
    assert_eq!(events.iter().map(|n| n.reason).collect::<Vec<_>>(), ["RolloutStarted"]);

    rollout.stuck = Some(Stuck {
        replica: "chat-3".parse().unwrap(),
        cause: "ImagePullBackOff: no such image".to_owned(),
        overdue: false,
    });
    case.rollout = Some(Progress { rollout, changed: ["image"].into() });
    let stuck = case.status(Some(&going), 2);
    assert_eq!(is(&stuck, "Progressing"), pair("False", "RolloutStuck"));
    let message = find(&stuck.conditions, "Progressing").unwrap().message.clone();
    for part in ["1/3", "chat-3", "no such image", "delete pod chat-3"] {
        assert!(message.contains(part), "{message}");
    }
    let events = notes(&case.resource, Some(&going), &stuck, at(2));
    assert_eq!(events.iter().map(|n| (n.reason, n.warning)).collect::<Vec<_>>(), [("RolloutStuck", true)]);

    case.rollout = None;
    let done = case.status(Some(&stuck), 3);
    let events = notes(&case.resource, Some(&stuck), &done, at(3));
    assert_eq!(events.iter().map(|n| n.reason).collect::<Vec<_>>(), ["RolloutComplete"]);
}

#[test]
fn a_budget_says_what_is_planned_of_each_cap_and_what_binds_or_is_exceeded() {
    use plimsoll_crds::{Budget, BudgetSpec};
    use plimsoll_fleet::BudgetUnit::{UsdPerHour, Watts};
    use plimsoll_fleet::OnLimit;
    use plimsoll_fleet::plan::{BindingConstraint, BudgetUse};
    use plimsoll_operator::status::cluster::{budget, fleet_plan};
    use plimsoll_operator::validate::Judged;
    let spec = BudgetSpec { usd_per_hour: Some(20.0), watts: Some(1000.0), ..BudgetSpec::default() };
    let resource = Budget::new("green", spec);
    let judged = Judged { verdict: Ok(resource.to_fleet().unwrap()), resource };
    let case = Case::new();
    let mut plan = case.plan.clone().unwrap();
    let used = |unit, cap, planned| BudgetUse {
        budget: "green".to_owned(),
        unit,
        cap,
        planned,
        on_limit: OnLimit::Alert,
    };
    plan.budgets = vec![used(UsdPerHour, 20.0, 9.2), used(Watts, 1000.0, 1200.0)];
    let status = budget(&judged, Some(&plan), at(0));
    assert_eq!(status.planned_usd_per_hour.as_deref(), Some("9.20"));
    let caps: Vec<String> =
        status.caps.iter().map(|c| format!("{} {} {}", c.cap, c.planned, c.most)).collect();
    assert_eq!(caps, ["usdPerHour $9.20/h $20.00/h", "watts 1200 W 1000 W"]);
    assert_eq!(status.binding.as_deref(), Some("no, exceeded by 200 W"));
    let limited = find(&status.conditions, "BudgetLimited").unwrap();
    assert_eq!((limited.status.as_str(), limited.reason.as_str()), ("False", "Exceeded"));
    assert_eq!(limited.message, "budget green: 1200 W of 1000 W planned, 200 W too much");
    let shown = fleet_plan(&plan, &[]);
    assert_eq!((shown.totals.watts.as_str(), shown.totals.grams_co2e_per_hour.as_str()), ("1200", "680"));
    assert_eq!(shown.exceeded, ["budget green: 1200 W of 1000 W planned, 200 W too much"]);
    plan.binding = vec![BindingConstraint {
        constraint: "budget green".to_owned(),
        unit: "100 W".to_owned(),
        usd_per_hour_per_unit: 0.12,
        unserved: false,
    }];
    let status = budget(&judged, Some(&plan), at(0));
    assert_eq!(status.binding.as_deref(), Some("yes, $0.12/h for 100 W"));
    plan.binding[0].unserved = true;
    let status = budget(&judged, Some(&plan), at(0));
    assert_eq!(status.binding.as_deref(), Some("yes, demand is unserved"));
}

#[test]
fn an_adapter_says_where_it_is_and_why_not_everywhere() {
    use std::collections::BTreeMap;

    use plimsoll_crds::{LoraAdapter, LoraAdapterSpec};
    use plimsoll_fleet::ReplicaId;
    use plimsoll_operator::AdapterObservation;
    use plimsoll_operator::status::cluster::adapter;
    use plimsoll_operator::validate::Judged;

    let spec = LoraAdapterSpec {
        base_pool: "chat".into(),
        model_name: Some("acme/sql".into()),
        source: "hf://acme/sql".into(),
        rank: 16,
        ..LoraAdapterSpec::default()
    };
    let resource = LoraAdapter::new("sql", spec);
    let judged = Judged { verdict: Ok(resource.to_fleet().unwrap()), resource };
    let ids = |names: &[&str]| names.iter().map(|n| ReplicaId::new(*n).unwrap()).collect();
    let seen = |placed: &[&str], held: &[&str], failure: &str| {
        let seen = AdapterObservation {
            placed: ids(placed),
            held: ids(held),
            failure: failure.into(),
            ..Default::default()
        };
        BTreeMap::from([("acme/sql".to_owned(), seen)])
    };
    let cases = [
        (BTreeMap::new(), "Unknown", "AwaitingRoutes", "", 0),
        (seen(&[], &[], ""), "False", "NotPlaced", "scaling.min", 0),
        (seen(&["a", "b"], &["a"], ""), "False", "Loading", "1 of 2 replicas hold it", 1),
        (seen(&["a", "b"], &["a"], "replica b: no room"), "False", "LoadFailed", "replica b: no room", 1),
        (seen(&["a"], &["a", "b"], ""), "True", "Loaded", "", 2),
    ];
    for (seen, wanted, reason, message, resident) in cases {
        let status = adapter(&judged, &seen, at(0));
        let loaded = find(&status.conditions, "Loaded").unwrap();
        assert_eq!((loaded.status.as_str(), loaded.reason.as_str()), (wanted, reason));
        assert!(loaded.message.contains(message), "{}", loaded.message);
        assert_eq!((status.resident_replicas, status.resident_on.len()), (resident, resident as usize));
    }
    let mut measured = seen(&["a", "b"], &["a"], "");
    let one = measured.get_mut("acme/sql").unwrap();
    (one.bytes, one.hits, one.misses) = (Some(84_000_000), 97, 3);
    one.places = [("a", (true, Some(120))), ("b", (false, None))]
        .map(|(id, at)| (ReplicaId::new(id).unwrap(), at))
        .into();
    let status = adapter(&judged, &measured, at(0));
    assert_eq!((status.size_bytes, status.hit_percent), (Some(84_000_000), Some(97)));
    let places: Vec<_> =
        status.places.iter().map(|p| (p.replica.as_str(), p.tier.as_str(), p.load_ms)).collect();
    assert_eq!(places, [("a", "Engine", Some(120)), ("b", "Disk", None)]);
}
