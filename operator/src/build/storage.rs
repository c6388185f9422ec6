//! The volumes of an engine: its weights, what it downloads, its shared memory. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, EnvVar, EphemeralVolumeSource, HostPathVolumeSource, ImageVolumeSource,
    PersistentVolumeClaimSpec, PersistentVolumeClaimTemplate, PersistentVolumeClaimVolumeSource, Volume,
    VolumeMount, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use plimsoll_crds::ModelPool;
use plimsoll_crds::model_pool::Cache;
use plimsoll_fleet::Adapter;

use super::engine::Weights;
use super::pod::literal;

/// Where weights from a volume or an image are mounted.
pub(super) const WEIGHTS: &str = "/weights";
/// The engine's writable home: compilation cache, and downloads that are its own.
const HOME: &str = "/cache";
/// Adapters that the agents of nodes have fetched.
const ADAPTERS: &str = "/adapters";
/// Volumes that adapters are on, a folder a claim.
const ADAPTER_CLAIMS: &str = "/adapter-claims";
/// Downloads that replicas share.
const SHARED: &str = "/shared-cache";

/// What an engine's container mounts, and what it must be told of it.
#[derive(Debug, Default)]
pub(super) struct Storage {
    pub(super) volumes: Vec<Volume>,
    pub(super) mounts: Vec<VolumeMount>,
    pub(super) env: Vec<EnvVar>,
}

impl Storage {
    fn add(&mut self, volume: Volume, path: &str, read_only: bool) {
        self.mounts.push(VolumeMount {
            name: volume.name.clone(),
            mount_path: path.to_owned(),
            read_only: read_only.then_some(true),
            ..VolumeMount::default()
        });
        self.volumes.push(volume);
    }
}

fn named(name: &str) -> Volume {
    Volume { name: name.to_owned(), ..Volume::default() }
}

fn empty_dir(name: &str, medium: Option<&str>, limit: Option<&str>) -> Volume {
    let source = EmptyDirVolumeSource {
        medium: medium.map(str::to_owned),
        size_limit: limit.map(|l| Quantity(l.to_owned())),
    };
    Volume { empty_dir: Some(source), ..named(name) }
}

fn claim(name: &str, claim: &str, read_only: bool) -> Volume {
    let source = PersistentVolumeClaimVolumeSource {
        claim_name: claim.to_owned(),
        read_only: read_only.then_some(true),
    };
    Volume { persistent_volume_claim: Some(source), ..named(name) }
}

/// A volume that comes and goes with its pod.
fn ephemeral(name: &str, class: &str, size: Option<&str>) -> Volume {
    let requests = size.map(|s| [("storage".to_owned(), Quantity(s.to_owned()))].into());
    let spec = PersistentVolumeClaimSpec {
        access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
        storage_class_name: Some(class.to_owned()),
        resources: Some(VolumeResourceRequirements { requests, limits: None }),
        ..PersistentVolumeClaimSpec::default()
    };
    let template = PersistentVolumeClaimTemplate { metadata: None, spec };
    Volume { ephemeral: Some(EphemeralVolumeSource { volume_claim_template: Some(template) }), ..named(name) }
}

fn host_directory(name: &str, path: &str) -> Volume {
    // It must exist: made by the kubelet it would belong to root, and neither engines nor agents are root.
    let source = HostPathVolumeSource { path: path.to_owned(), type_: Some("Directory".to_owned()) };
    Volume { host_path: Some(source), ..named(name) }
}

/// What engines that load adapters read them from: `cache` is the folder of nodes that agents keep them in.
fn adapters(all: &mut Storage, adapters: &[&Adapter], cache: Option<&str>) {
    if let Some(path) = cache.filter(|_| !adapters.is_empty()) {
        all.add(host_directory("adapters", path), ADAPTERS, true);
    }
    let claims: BTreeSet<&str> = adapters
        .iter()
        .filter_map(|a| a.source.strip_prefix("pvc://")?.split('/').next())
        .filter(|claim| !claim.is_empty())
        .collect();
    for (number, name) in claims.into_iter().enumerate() {
        let volume = claim(&format!("adapters-{number}"), name, true);
        all.add(volume, &format!("{ADAPTER_CLAIMS}/{name}"), true);
    }
}

/// The volumes of a pool's engines. `of_pool` are the adapters that they are to load.
pub(super) fn storage(
    resource: &ModelPool,
    weights: &Weights,
    of_pool: &[&Adapter],
    cache: Option<&str>,
) -> Storage {
    let mut all = Storage::default();
    let none = Cache::default();
    let Cache { claim: shared, host_path, storage_class_name, size } =
        resource.spec.engine.cache.as_ref().unwrap_or(&none);
    let home = match storage_class_name {
        Some(class) => ephemeral("cache", class, size.as_deref()),
        None => empty_dir("cache", None, size.as_deref()),
    };
    all.add(home, HOME, false);
    // Tensor parallelism exchanges through shared memory; the runtime's default of 64 MiB is too small.
    all.add(empty_dir("shm", Some("Memory"), None), "/dev/shm", false);
    // Only downloads are shared, which Hugging Face's library locks file by file and resumes; what else engines keep at home
    // is not made for company.
    let downloads = if let Some(name) = shared {
        all.add(claim("shared-cache", name, false), SHARED, false);
        SHARED
    } else if let Some(path) = host_path {
        all.add(host_directory("shared-cache", path), SHARED, false);
        SHARED
    } else {
        HOME
    };
    match weights {
        Weights::Claim { claim: name, .. } => all.add(claim("weights", name, true), WEIGHTS, true),
        Weights::Image { reference } => {
            let source = ImageVolumeSource { reference: Some(reference.clone()), pull_policy: None };
            all.add(Volume { image: Some(source), ..named("weights") }, WEIGHTS, true);
        }
        Weights::HuggingFace { .. } | Weights::Remote { .. } | Weights::None => {}
    }
    adapters(&mut all, of_pool, cache);
    all.env = vec![literal("HOME", HOME), literal("HF_HOME", &format!("{downloads}/huggingface"))];
    all
}
