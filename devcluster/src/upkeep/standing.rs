//! Objects that stand in every cluster, made by the API server and the controller manager of a real one: the first namespaces,
//! each namespace's `default` ServiceAccount and `kube-root-ca.crt` ConfigMap, and the API's own Service in `default`.

use std::net::SocketAddr;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::new_uid;
use crate::apply::{Typing, track_update};
use crate::gvk::GroupKind;
use crate::store::{CommitError, Expected, GroupResource, ObjectKey, Store};

/// The namespaces that every cluster has.
const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];
/// Name of the ConfigMap with the API's certificate authority.
pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";
/// The API's own address in its Service: the first of kubeadm's default service range.
const API_SERVICE_IP: &str = "10.96.0.1";

/// An object that must stand, and its fields that are put back when someone changes them.
struct Standing {
    key: ObjectKey,
    object: Value,
    kept: &'static [&'static str],
}

/// Makes the first namespaces, where they are missing.
///
/// # Errors
/// [`CommitError`] if the store refuses one.
pub(crate) fn first_namespaces(store: &Store, now: Timestamp) -> Result<(), CommitError> {
    for name in NAMESPACES {
        let key = ObjectKey::new(GroupResource::new("", "namespaces"), "", *name);
        if store.get(&key).is_some() {
            continue;
        }
        let mut namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
            "spec": {"finalizers": ["kubernetes"]},
            "status": {"phase": "Active"},
        });
        stamp(&mut namespace, now);
        store.commit(&key, Expected::Absent, Some(namespace))?;
    }
    Ok(())
}

/// Puts back what is missing in any namespace.
pub(crate) fn restore_all(store: &Store, address: SocketAddr, now: Timestamp) {
    let (namespaces, _) = store.list(&GroupResource::new("", "namespaces"), None);
    for namespace in namespaces {
        if let Some(name) = namespace.meta("name") {
            restore(store, name, address, now);
        }
    }
}

/// Puts back what is missing in a namespace, unless that is being deleted.
pub(crate) fn restore(store: &Store, namespace: &str, address: SocketAddr, now: Timestamp) {
    let active = || {
        let key = ObjectKey::new(GroupResource::new("", "namespaces"), "", namespace);
        store.get(&key).is_some_and(|n| n.meta("deletionTimestamp").is_none())
    };
    if !active() {
        return;
    }
    for Standing { key, mut object, kept } in standing(namespace, address) {
        match store.get(&key) {
            Some(_) => {
                // Only its deletion can interfere, and that is looked at again.
                let _ = store.update(&key, |current| {
                    for field in kept {
                        current[*field] = object[*field].clone();
                    }
                    true
                });
            }
            None => {
                stamp(&mut object, now);
                object = managed(&object, now);
                let made = store.commit(&key, Expected::Absent, Some(object));
                if let Ok(made) = made
                    && !active()
                {
                    // The namespace was deleted meanwhile: nothing new may stay in it.
                    let _ = store.commit(&key, Expected::Revision(made.revision), None);
                }
            }
        }
    }
}

fn standing(namespace: &str, address: SocketAddr) -> Vec<Standing> {
    let core = |resource: &str, name: &str| ObjectKey::new(GroupResource::new("", resource), namespace, name);
    let mut out = vec![
        Standing {
            key: core("serviceaccounts", "default"),
            object: json!({
                "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": "default", "namespace": namespace},
            }),
            kept: &[],
        },
        Standing {
            key: core("configmaps", ROOT_CA),
            object: json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {
                    "name": ROOT_CA, "namespace": namespace,
                    "annotations": {"kubernetes.io/description": "Contains a CA bundle that can be used to verify the \
                        kube-apiserver when using internal endpoints such as the internal service IP or \
                        kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters."},
                },
                // This API speaks plain HTTP, so its bundle is empty.
                "data": {"ca.crt": ""},
            }),
            kept: &["data"],
        },
    ];
    if namespace == "default" {
        out.extend(api_service(address));
    }
    out
}

/// The Service `kubernetes` and where it leads.
fn api_service(address: SocketAddr) -> [Standing; 3] {
    let (ip, port) = (address.ip().to_string(), address.port());
    let meta = json!({"name": "kubernetes", "namespace": "default"});
    let key = |group: &str, resource: &str| {
        ObjectKey::new(GroupResource::new(group, resource), "default", "kubernetes")
    };
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let mut service_meta = meta.clone();
    service_meta["labels"] = json!({"component": "apiserver", "provider": "kubernetes"});
    let mut slice_meta = meta.clone();
    slice_meta["labels"] = json!({"kubernetes.io/service-name": "kubernetes"});
    let mut endpoints_meta = meta;
    endpoints_meta["labels"] = json!({"endpointslice.kubernetes.io/skip-mirror": "true"});
    [
        Standing {
            key: key("", "services"),
            object: json!({
                "apiVersion": "v1", "kind": "Service", "metadata": service_meta,
                "spec": {
                    "type": "ClusterIP", "clusterIP": API_SERVICE_IP, "clusterIPs": [API_SERVICE_IP],
                    "internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                    "sessionAffinity": "None",
                    "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
                },
                "status": {"loadBalancer": {}},
            }),
            kept: &["spec"],
        },
        Standing {
            key: key("", "endpoints"),
            object: json!({
                "apiVersion": "v1", "kind": "Endpoints", "metadata": endpoints_meta,
                "subsets": [{
                    "addresses": [{"ip": ip}],
                    "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
                }],
            }),
            kept: &["subsets"],
        },
        Standing {
            key: key("discovery.k8s.io", "endpointslices"),
            object: json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": slice_meta,
                "addressType": family,
                "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}],
                "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
            }),
            kept: &["addressType", "endpoints", "ports"],
        },
    ]
}

/// What every stored object has.
/// The object with its fields on record as those of the controller manager, which makes most of them in a real cluster.
fn managed(object: &Value, now: Timestamp) -> Value {
    let group = object["apiVersion"].as_str().and_then(|v| v.split_once('/')).map_or("", |(group, _)| group);
    let kind = GroupKind::new(group, object["kind"].as_str().unwrap_or_default());
    match Typing::builtin(&kind) {
        Some(typing) => track_update(None, object, "kube-controller-manager", None, now, &typing),
        None => object.clone(),
    }
}

fn stamp(object: &mut Value, now: Timestamp) {
    object["metadata"]["uid"] = new_uid().into();
    object["metadata"]["creationTimestamp"] = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn store() -> Store {
        let store = Store::open(None, 64, 64).unwrap();
        first_namespaces(&store, Timestamp::UNIX_EPOCH).unwrap();
        restore_all(&store, address(6443), Timestamp::UNIX_EPOCH);
        store
    }

    fn core(resource: &str, namespace: &str, name: &str) -> ObjectKey {
        ObjectKey::new(GroupResource::new("", resource), namespace, name)
    }

    #[test]
    fn every_namespace_has_its_account_and_its_bundle() {
        let store = store();
        for namespace in NAMESPACES {
            for (resource, name) in [("serviceaccounts", "default"), ("configmaps", ROOT_CA)] {
                let object = store.get(&core(resource, namespace, name)).unwrap();
                assert!(object.meta("uid").is_some() && object.meta("creationTimestamp").is_some());
            }
        }
        assert!(store.get(&core("services", "default", "kubernetes")).is_some());
        assert!(store.get(&core("services", "kube-system", "kubernetes")).is_none());
        let revision = store.revision();
        restore_all(&store, address(6443), Timestamp::UNIX_EPOCH);
        assert_eq!(store.revision(), revision, "nothing was missing");
    }

    #[test]
    fn the_service_follows_the_api_to_another_port() {
        let store = store();
        restore_all(&store, address(7443), Timestamp::UNIX_EPOCH);
        let service = store.get(&core("services", "default", "kubernetes")).unwrap();
        assert_eq!(service.value["spec"]["ports"][0]["targetPort"], 7443);
        let endpoints = store.get(&core("endpoints", "default", "kubernetes")).unwrap();
        assert_eq!(endpoints.value["subsets"][0]["ports"][0]["port"], 7443);
    }

    #[test]
    fn a_namespace_that_is_being_deleted_gets_nothing() {
        let store = store();
        let key = core("namespaces", "", "kube-public");
        let delete = |n: &mut Value| {
            n["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            true
        };
        store.update(&key, delete).unwrap();
        let account = core("serviceaccounts", "kube-public", "default");
        let revision = store.get(&account).unwrap().revision;
        store.commit(&account, Expected::Revision(revision), None).unwrap();
        restore(&store, "kube-public", address(1), Timestamp::UNIX_EPOCH);
        assert!(store.get(&account).is_none());
    }
}
