//! What the plan in force advises for each pool, in the forms that autoscalers read: a number of replicas, whole or on one
//! accelerator class. Pure but for the place where the newest plan's advice is kept.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use parking_lot::Mutex;
use plimsoll_fleet::{Plan, PoolId, PoolPlan};
use serde::Serialize;

/// Name of the metric, in every form.
pub const METRIC: &str = "plimsoll_advised_replicas";

/// The advice for one pool.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Advice {
    /// Pool, as namespace/name.
    pub pool: PoolId,
    /// Number of the plan.
    pub plan: u64,
    /// Replicas.
    pub advised_replicas: u32,
    /// Their cost.
    pub usd_per_hour: f64,
    /// The fleet as people say it.
    pub fleet: String,
    /// Replicas by shape.
    pub shapes: Vec<ShapeAdvice>,
    /// What became of the demand, e.g. `served` or `budget-limited`.
    pub outcome: String,
    /// Why.
    pub why: String,
}

/// Replicas of one shape.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShapeAdvice {
    /// The shape as people say it, e.g. `fp8 TP2 H100`.
    pub shape: String,
    /// Variant.
    pub variant: String,
    /// Accelerator class.
    pub accelerator: String,
    /// Tensor-parallel degree.
    pub tensor_parallel: u32,
    /// Pipeline-parallel degree.
    pub pipeline_parallel: u32,
    /// Replicas.
    pub advised_replicas: u32,
}

impl Advice {
    /// From a pool's part of a plan.
    pub fn of(plan: u64, pool: &PoolPlan) -> Self {
        let shapes = pool.by_shape();
        Self {
            pool: pool.pool.clone(),
            plan,
            advised_replicas: shapes.values().sum(),
            usd_per_hour: pool.usd_per_hour,
            fleet: pool.fleet_text(),
            shapes: shapes
                .into_iter()
                .map(|(shape, n)| ShapeAdvice {
                    shape: shape.to_string(),
                    tensor_parallel: shape.tensor_parallel,
                    pipeline_parallel: shape.pipeline_parallel,
                    variant: shape.variant,
                    accelerator: shape.accelerator,
                    advised_replicas: n,
                })
                .collect(),
            outcome: pool.outcome.to_string(),
            why: pool.why.summary.clone(),
        }
    }

    /// The part of it on one accelerator class: none of its replicas if nothing is advised there.
    pub fn on(mut self, accelerator: &str) -> Self {
        self.shapes.retain(|s| s.accelerator == accelerator);
        self.advised_replicas = self.shapes.iter().map(|s| s.advised_replicas).sum();
        self
    }

    /// The number alone, in Prometheus's text format, for readers that look for a line with the metric's name.
    pub fn to_prometheus(&self) -> String {
        let mut text =
            format!("# HELP {METRIC} Replicas that the plan in force advises\n# TYPE {METRIC} gauge\n");
        // Names of Kubernetes objects need no escapes.
        let _ = writeln!(text, "{METRIC}{{pool=\"{}\"}} {}", self.pool, self.advised_replicas);
        text
    }
}

/// Why there is no advice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoAdvice {
    /// Nothing was planned yet.
    #[error("nothing is planned yet; ask again once the operator is connected")]
    NoPlan,
    /// The plan has no such pool.
    #[error("there is no accepted ModelPool {0}; see kubectl get modelpools -A")]
    NoPool(String),
}

/// The newest plan's advice. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Advised(Arc<Mutex<Option<BTreeMap<PoolId, Advice>>>>);

impl Advised {
    /// Takes over a plan's.
    pub fn show(&self, plan: &Plan) {
        let all = plan.pools.iter().map(|p| (p.pool.clone(), Advice::of(plan.number, p))).collect();
        *self.0.lock() = Some(all);
    }

    /// Forgets it: who advises is another scheduler.
    pub(crate) fn forget(&self) {
        *self.0.lock() = None;
    }

    /// For one pool, whole or on one accelerator class.
    ///
    /// # Errors
    /// [`NoAdvice`] if there is no plan, or no such pool in it.
    pub fn find(&self, namespace: &str, pool: &str, accelerator: Option<&str>) -> Result<Advice, NoAdvice> {
        let known = self.0.lock();
        let known = known.as_ref().ok_or(NoAdvice::NoPlan)?;
        let advice = PoolId::new(namespace, pool).ok().and_then(|id| known.get(&id));
        let advice = advice.cloned().ok_or_else(|| NoAdvice::NoPool(format!("{namespace}/{pool}")))?;
        Ok(match accelerator {
            Some(class) => advice.on(class),
            None => advice,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assignment, plan, pool_plan};

    #[test]
    fn the_newest_plan_is_what_is_advised() {
        let advised = Advised::default();
        assert_eq!(advised.find("default", "a", None), Err(NoAdvice::NoPlan));
        let replicas = vec![assignment("a-1", "n1"), assignment("a-2", "n1")];
        advised.show(&plan(3, vec![pool_plan("a", replicas, 1.0), pool_plan("b", vec![], 0.0)]));
        let a = advised.find("default", "a", None).unwrap();
        assert_eq!((a.plan, a.advised_replicas, a.shapes.len()), (3, 2, 1));
        let class = a.shapes[0].accelerator.clone();
        assert_eq!(advised.find("default", "a", Some(&class)).unwrap().advised_replicas, 2);
        assert_eq!(advised.find("default", "a", Some("h900")).unwrap().advised_replicas, 0);
        assert_eq!(advised.find("default", "b", None).unwrap().advised_replicas, 0);
        let gone = advised.find("default", "Not A Name", None).unwrap_err();
        assert!(gone.to_string().starts_with("there is no accepted ModelPool default/Not A Name"), "{gone}");
    }

    #[test]
    fn the_forms_are_what_autoscalers_read() {
        let replicas = vec![assignment("a-1", "n1")];
        let advice = Advice::of(7, &pool_plan("a", replicas, 1.0));
        let text = advice.to_prometheus();
        // AIBrix takes the last word of the first line that is no comment and has the metric's name in it.
        let line = text.lines().find(|l| !l.starts_with('#') && l.contains(METRIC)).unwrap();
        assert_eq!(line, "plimsoll_advised_replicas{pool=\"default/a\"} 1");
        // KEDA takes a number at a path.
        let json = serde_json::to_value(&advice).unwrap();
        assert_eq!(
            (&json["advisedReplicas"], &json["pool"], &json["plan"]),
            (&1.into(), &"default/a".into(), &7.into())
        );
        assert_eq!(json["shapes"][0]["advisedReplicas"], 1);
    }
}
