//! LeaderWorkerSets (`leaderworkerset.x-k8s.io/v1`): one for each replica over several nodes, where the cluster has that API
//! and lets the operator use it.
//!
//! Fields as in that API's v1: `replicas` groups (here always one) of `leaderWorkerTemplate.size` pods, the first from
//! `leaderTemplate`, the others from `workerTemplate`; `restartPolicy: RecreateGroupOnPodRestart` makes the whole group anew
//! where any of it restarts. Its controller names pods `NAME-0`, `NAME-0-1`, …, labels them with their index, and tells
//! each the leader's address in `LWS_LEADER_ADDRESS`.

use std::time::Duration;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::api::{Api, ApiResource, GroupVersionKind, PostParams};
use kube::{Client, Resource, discovery};
use plimsoll_crds::ModelPool;
use plimsoll_fleet as fleet;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::info;

use crate::names;

/// Its group.
pub const GROUP: &str = "leaderworkerset.x-k8s.io";
/// Its version.
pub const VERSION: &str = "v1";
/// Its kind.
pub const KIND: &str = "LeaderWorkerSet";
const PLURAL: &str = "leaderworkersets";
/// Label of a set's pods: the set's name.
pub const SET_NAME: &str = "leaderworkerset.sigs.k8s.io/name";
/// Label of a set's pods: their rank in their group.
pub const WORKER_INDEX: &str = "leaderworkerset.sigs.k8s.io/worker-index";
/// Variable of a set's containers: the leader's address.
pub const LEADER_ADDRESS: &str = "LWS_LEADER_ADDRESS";

/// Longest name of a set: its StatefulSets' revisions and its pods' host names add to it and must fit 63 characters.
const LONGEST_NAME: usize = 45;
/// Time between two looks at whether the API is there.
const RECHECK: Duration = Duration::from_secs(60);
/// Longest time one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether a set can have a replica's name.
pub fn can_name(replica: &str) -> bool {
    replica.len() <= LONGEST_NAME && names::dns_label(replica, LONGEST_NAME) == replica
}

/// The API's resource.
pub fn resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, KIND), PLURAL)
}

/// A set of one group.
pub fn body(
    resource: &ModelPool,
    pool: &fleet::ModelPool,
    replica: &str,
    size: u32,
    leader: &PodTemplateSpec,
    worker: &PodTemplateSpec,
) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": KIND,
        "metadata": {
            "name": replica,
            "namespace": pool.id.namespace(),
            "labels": {
                names::MANAGED_BY: names::PLIMSOLL,
                names::POOL: names::label_value(pool.id.name()),
                names::REPLICA: names::label_value(replica),
            },
            "ownerReferences": Vec::from_iter(resource.controller_owner_ref(&())),
        },
        "spec": {
            "replicas": 1,
            "startupPolicy": "LeaderCreated",
            "leaderWorkerTemplate": {
                "size": size,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": leader,
                "workerTemplate": worker,
            },
        },
    })
}

/// Remembers whether LeaderWorkerSets can be used.
#[derive(Debug, Default)]
pub struct Lws {
    answer: Option<Answer>,
    asked: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Usable,
    Absent,
    Forbidden,
}

impl Lws {
    /// Whether the cluster has the API and lets the operator use it; asked again after a minute, since both may change.
    pub async fn usable(&mut self, client: &Client) -> bool {
        let due = self.asked.is_none_or(|at| at.elapsed() >= RECHECK);
        if due {
            self.asked = Some(Instant::now());
            // Without an answer the last one holds, and at first that there is none.
            if let Some(answer) = ask(client).await {
                if self.answer != Some(answer) {
                    match answer {
                        Answer::Usable => {
                            info!("replicas over several nodes are made as {GROUP}/{VERSION} {KIND}s")
                        }
                        Answer::Absent => {
                            info!(
                                "the cluster has no {GROUP}/{VERSION}: replicas over several nodes are made as pods"
                            );
                        }
                        Answer::Forbidden => info!(
                            "the operator may not create, get and delete {PLURAL}: replicas over several nodes are made as pods; \
                             upgrade the Helm release with its own chart, or set leaderWorkerSets.enabled to false, to end this message"
                        ),
                    }
                }
                self.answer = Some(answer);
            }
        }
        self.answer == Some(Answer::Usable)
    }
}

async fn ask(client: &Client) -> Option<Answer> {
    let kind = GroupVersionKind::gvk(GROUP, VERSION, KIND);
    match tokio::time::timeout(REQUEST_TIMEOUT, discovery::pinned_kind(client, &kind)).await.ok()? {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => return Some(Answer::Absent),
        Err(kube::Error::Discovery(_)) => return Some(Answer::Absent),
        Err(_) => return None,
    }
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    for verb in ["create", "get", "delete"] {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    group: Some(GROUP.to_owned()),
                    resource: Some(PLURAL.to_owned()),
                    verb: Some(verb.to_owned()),
                    ..ResourceAttributes::default()
                }),
                non_resource_attributes: None,
            },
            ..SelfSubjectAccessReview::default()
        };
        let params = PostParams::default();
        let asked = reviews.create(&params, &review);
        let answered = tokio::time::timeout(REQUEST_TIMEOUT, asked).await.ok()?.ok()?;
        if !answered.status.is_some_and(|s| s.allowed) {
            return Some(Answer::Forbidden);
        }
    }
    Some(Answer::Usable)
}
