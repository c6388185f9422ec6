//! Accelerators that the cluster allocates dynamically (`resource.k8s.io/v1`): which nodes publish them, who holds them, and
//! what a replica claims. Pure.
//!
//! A class that names a DeviceClass uses claims once that DeviceClass exists; on a node, once its driver publishes devices of
//! the class there. Everywhere else the extended resource counts, so that a cluster can move from one to the other node
//! by node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::resource::v1::{
    CELDeviceSelector, Device, DeviceClaim, DeviceRequest, DeviceSelector, ExactDeviceRequest, ResourceClaim,
    ResourceClaimSpec, ResourceClaimTemplate, ResourceClaimTemplateSpec, ResourceSlice,
};
use kube::Resource;
use kube::api::ObjectMeta;
use plimsoll_crds::ModelPool;
use plimsoll_fleet::accelerator::DeviceRequest as Request;
use plimsoll_fleet::{AcceleratorClass, NodeName, PoolId};

use crate::names;

/// Name of a pod's claim, and of the request in it.
pub const CLAIM: &str = "accelerators";

/// What the cluster says of dynamically allocated devices. All of it is empty where the cluster does not serve
/// `resource.k8s.io/v1` or does not grant it.
#[derive(Debug, Clone, Default)]
pub struct DynamicResources {
    /// Names of the DeviceClasses.
    pub classes: BTreeSet<String>,
    /// Devices of nodes.
    pub slices: Vec<Arc<ResourceSlice>>,
    /// Claims, whoever made them.
    pub claims: Vec<Arc<ResourceClaim>>,
}

/// Driver, pool and name.
type DeviceId<'a> = (&'a str, &'a str, &'a str);

/// Devices by accelerator class and node.
#[derive(Debug, Default)]
pub struct Devices<'a> {
    by_node: BTreeMap<(&'a str, &'a str), BTreeSet<DeviceId<'a>>>,
    classes: Option<&'a BTreeSet<String>>,
}

impl<'a> Devices<'a> {
    /// Finds the devices of these classes.
    pub fn read(
        resources: &'a DynamicResources,
        classes: impl Iterator<Item = &'a AcceleratorClass>,
    ) -> Self {
        let mut by_node: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        // Slices of an older generation of their pool are about to go.
        let mut newest: BTreeMap<(&str, &str), i64> = BTreeMap::new();
        for slice in &resources.slices {
            let pool = &slice.spec.pool;
            let at =
                newest.entry((slice.spec.driver.as_str(), pool.name.as_str())).or_insert(pool.generation);
            *at = (*at).max(pool.generation);
        }
        for class in classes {
            let Some(request) =
                class.devices.as_ref().filter(|r| resources.classes.contains(&r.device_class))
            else {
                continue;
            };
            for slice in resources.slices.iter().filter(|s| s.spec.driver == request.driver) {
                let spec = &slice.spec;
                let (driver, pool) = (spec.driver.as_str(), spec.pool.name.as_str());
                // Devices that several nodes reach are not a node's accelerators.
                let Some(node) = spec.node_name.as_deref() else { continue };
                if newest.get(&(driver, pool)) != Some(&spec.pool.generation) {
                    continue;
                }
                for device in spec.devices.iter().flatten().filter(|d| usable(d) && matches(d, request)) {
                    let at = by_node.entry((class.name.as_str(), node)).or_default();
                    at.insert((driver, pool, device.name.as_str()));
                }
            }
        }
        Self { by_node, classes: Some(&resources.classes) }
    }

    /// Whether replicas of a class claim devices: its DeviceClass exists.
    pub fn are_claimed(&self, class: &AcceleratorClass) -> bool {
        let known = |request: &Request| self.classes.is_some_and(|c| c.contains(&request.device_class));
        class.devices.as_ref().is_some_and(known)
    }

    /// Devices of a class on a node; `None` if it publishes none, so that the extended resource counts there.
    pub fn on(&self, class: &str, node: &str) -> Option<u32> {
        self.by_node.get(&(class, node)).map(|devices| devices.len() as u32)
    }

    /// Nodes that publish devices.
    pub fn nodes(&self) -> usize {
        self.by_node.keys().map(|(_, node)| node).collect::<BTreeSet<_>>().len()
    }

    /// What a replica on these nodes claims; `None` if it requests the extended resource.
    pub fn request<'c>(&self, class: &'c AcceleratorClass, nodes: &[NodeName]) -> Option<&'c Request> {
        let published = nodes.iter().all(|n| self.on(&class.name, n.as_str()).is_some());
        class.devices.as_ref().filter(|_| self.are_claimed(class) && published)
    }

    /// Devices of each class and node that are allocated to others than these pods (by UID).
    pub fn foreign(
        &self,
        claims: &[Arc<ResourceClaim>],
        own_pods: &BTreeSet<&str>,
    ) -> BTreeMap<(String, String), u32> {
        let mut held: BTreeSet<DeviceId<'_>> = BTreeSet::new();
        for claim in claims {
            let status = claim.status.as_ref();
            let own =
                status.and_then(|s| s.reserved_for.as_ref()).into_iter().flatten().map(|r| r.uid.as_str());
            let owners = claim.metadata.owner_references.iter().flatten().map(|o| o.uid.as_str());
            if own.chain(owners).any(|uid| own_pods.contains(uid)) {
                continue;
            }
            let devices = status.and_then(|s| s.allocation.as_ref()?.devices.as_ref()?.results.as_ref());
            // Access for administration takes nothing from anybody.
            let results = devices.into_iter().flatten().filter(|r| r.admin_access != Some(true));
            held.extend(results.map(|r| (r.driver.as_str(), r.pool.as_str(), r.device.as_str())));
        }
        let count = |devices: &BTreeSet<DeviceId<'_>>| devices.iter().filter(|d| held.contains(*d)).count();
        self.by_node
            .iter()
            .map(|((class, node), devices)| {
                (((*class).to_owned(), (*node).to_owned()), count(devices) as u32)
            })
            .collect()
    }
}

/// Not tainted, neither for new pods nor for those that run.
fn usable(device: &Device) -> bool {
    !device.taints.iter().flatten().any(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute"))
}

/// Domain and name of an attribute; without a domain it is the driver's own.
fn qualified<'a>(name: &'a str, driver: &'a str) -> (&'a str, &'a str) {
    name.rsplit_once('/').unwrap_or((driver, name))
}

fn matches(device: &Device, request: &Request) -> bool {
    request.attributes.iter().all(|(name, value)| {
        let wanted = qualified(name, &request.driver);
        device.attributes.iter().flatten().any(|(name, has)| {
            qualified(name, &request.driver) == wanted && has.string.as_deref() == Some(value.as_str())
        })
    })
}

/// A request's attributes and selectors as CEL.
fn expressions(request: &Request) -> Vec<String> {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let attributes = request.attributes.iter().map(|(name, value)| {
        let (domain, name) = qualified(name, &request.driver);
        let (domain, name, value) = (quoted(domain), quoted(name), quoted(value));
        // A device without the attribute is passed over; to compare what is absent would fail the whole claim.
        format!("{name} in device.attributes[{domain}] && device.attributes[{domain}][{name}] == {value}")
    });
    attributes.chain(request.selectors.iter().cloned()).collect()
}

/// The template that a replica's claim is made from. Named by its content: pods of one pool that claim alike share it, and
/// another content makes another template, for a claim's spec never changes.
pub fn claim_template(
    resource: &ModelPool,
    pool: &PoolId,
    class: &str,
    request: &Request,
    count: u32,
) -> ResourceClaimTemplate {
    let selectors: Vec<DeviceSelector> = expressions(request)
        .into_iter()
        .map(|expression| DeviceSelector { cel: Some(CELDeviceSelector { expression }) })
        .collect();
    let exactly = ExactDeviceRequest {
        device_class_name: request.device_class.clone(),
        allocation_mode: Some("ExactCount".to_owned()),
        count: Some(i64::from(count)),
        selectors: (!selectors.is_empty()).then_some(selectors),
        ..ExactDeviceRequest::default()
    };
    let digest = names::digest(&format!("{exactly:?}"));
    let labels = BTreeMap::from([
        (names::MANAGED_BY.to_owned(), names::PLIMSOLL.to_owned()),
        (names::POOL.to_owned(), names::label_value(pool.name())),
    ]);
    ResourceClaimTemplate {
        metadata: ObjectMeta {
            name: Some(format!("{}-{class}-{count}-{}", names::label_value(pool.name()), &digest[..8])),
            namespace: Some(pool.namespace().to_owned()),
            labels: Some(labels.clone()),
            owner_references: resource.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: ResourceClaimTemplateSpec {
            metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
            spec: ResourceClaimSpec {
                devices: Some(DeviceClaim {
                    requests: Some(vec![DeviceRequest {
                        name: CLAIM.to_owned(),
                        exactly: Some(exactly),
                        first_available: None,
                    }]),
                    ..DeviceClaim::default()
                }),
            },
        },
    }
}
