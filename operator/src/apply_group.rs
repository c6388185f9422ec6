//! Creates and deletes replicas over several nodes.

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::{Client, ResourceExt};
use plimsoll_fleet::{PoolId, ReplicaId};
use tracing::info;

use crate::apply::{self, explain, is_already_exists, is_conflict, is_not_found};
use crate::build::group::NewGroup;
use crate::{lws, names};

/// Creates a group, or what is missing of it. Workers are owned by their leader's pod: what is left of a group when its
/// leader is gone ends, and cannot be taken for a part of the next one.
///
/// # Errors
/// What stands in the way and what to do.
pub(crate) async fn create(
    client: &Client,
    field_manager: &str,
    pool: &PoolId,
    owner_uid: &str,
    replica: &ReplicaId,
    group: &NewGroup,
) -> Result<(), String> {
    match group {
        NewGroup::Set { body } => create_set(client, field_manager, pool, owner_uid, replica, body).await,
        NewGroup::Pods { service, pods } => {
            let Some((leader, workers)) = pods.split_first() else { return Ok(()) };
            apply_service(client, field_manager, pool, service).await?;
            let leader_uid = apply::create(client, field_manager, pool, owner_uid, leader).await?;
            let owner = OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                name: leader.name_any(),
                uid: leader_uid,
                controller: Some(true),
                block_owner_deletion: None,
            };
            for worker in workers {
                create_worker(client, field_manager, pool, worker, &owner).await?;
            }
            Ok(())
        }
    }
}

async fn apply_service(
    client: &Client,
    field_manager: &str,
    pool: &PoolId,
    service: &Service,
) -> Result<(), String> {
    let api: Api<Service> = Api::namespaced(client.clone(), pool.namespace());
    let name = service.name_any();
    let params = PatchParams::apply(field_manager).force();
    match api.patch(&name, &params, &Patch::Apply(service)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 403 => Err(format!(
            "Service {name}, through which pods of one replica find each other, cannot be made: {}; grant the operator create \
             and patch of services (the chart does: upgrade the release), or take pipeline degrees above 1 out of \
             spec.parallelism",
            status.message
        )),
        Err(e) => Err(format!("failed to apply Service {name}: {}", explain(&e))),
    }
}

async fn create_worker(
    client: &Client,
    field_manager: &str,
    pool: &PoolId,
    worker: &Pod,
    leader: &OwnerReference,
) -> Result<(), String> {
    let mut worker = worker.clone();
    worker.metadata.owner_references = Some(vec![leader.clone()]);
    let (api, name) = (apply::pods(client, pool), worker.name_any());
    let params = PostParams { field_manager: Some(field_manager.to_owned()), dry_run: false };
    match api.create(&params, &worker).await {
        Ok(_) => {
            info!(%pool, pod = %name, leader = %leader.name, "worker created");
            Ok(())
        }
        Err(e) if is_already_exists(&e) => match api.get_opt(&name).await {
            Ok(Some(existing)) if existing.owner_references().iter().any(|o| o.uid == leader.uid) => Ok(()),
            Ok(_) => Err(format!("worker {name} waits for an older pod of the same name to end")),
            Err(e) => Err(format!("failed to look at pod {name}, which exists already: {}", explain(&e))),
        },
        Err(e) => Err(format!("failed to create worker {name}: {}", explain(&e))),
    }
}

fn sets(client: &Client, pool: &PoolId) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), pool.namespace(), &lws::resource())
}

async fn create_set(
    client: &Client,
    field_manager: &str,
    pool: &PoolId,
    owner_uid: &str,
    replica: &ReplicaId,
    body: &serde_json::Value,
) -> Result<(), String> {
    let failed = |what: &str| format!("failed to create LeaderWorkerSet {replica}: {what}");
    let object: DynamicObject = serde_json::from_value(body.clone()).map_err(|e| failed(&e.to_string()))?;
    let api = sets(client, pool);
    let params = PostParams { field_manager: Some(field_manager.to_owned()), dry_run: false };
    match api.create(&params, &object).await {
        Ok(_) => {
            info!(%pool, %replica, "replica created as a LeaderWorkerSet");
            Ok(())
        }
        Err(e) if is_already_exists(&e) => match api.get_opt(replica.as_str()).await {
            // Its controller has yet to make its pods, or makes them anew.
            Ok(Some(set))
                if set.owner_references().iter().any(|o| o.uid == owner_uid)
                    && set.metadata.deletion_timestamp.is_none() =>
            {
                Ok(())
            }
            Ok(_) => {
                Err(format!("replica {replica} waits for an older LeaderWorkerSet of the same name to end"))
            }
            Err(e) => Err(failed(&explain(&e))),
        },
        Err(e) => Err(failed(&explain(&e))),
    }
}

/// Deletes a replica's LeaderWorkerSet, whose controller ends its pods; whether it was there.
///
/// # Errors
/// Whatever the API answers.
pub(crate) async fn delete_set(client: &Client, pool: &PoolId, set: &str) -> Result<bool, kube::Error> {
    let api = sets(client, pool);
    let Some(existing) = api.get_opt(set).await? else { return Ok(false) };
    let ours = existing.labels().get(names::MANAGED_BY).is_some_and(|by| by == names::PLIMSOLL);
    if !ours || existing.metadata.deletion_timestamp.is_some() {
        return Ok(false);
    }
    let mut params = apply::exactly(&existing.uid().unwrap_or_default());
    params.propagation_policy = Some(PropagationPolicy::Background);
    match api.delete(set, &params).await {
        Ok(_) => Ok(true),
        Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(false),
        Err(e) => Err(e),
    }
}
