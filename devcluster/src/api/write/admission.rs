//! What a server adds to a new object of its own accord, after the writer's fields are on record: what admission plugins and
//! the strategies of kinds put in. Nobody owns these fields.

use std::collections::BTreeSet;

use rand::Rng as _;
use serde_json::{Value, json};

use super::super::Cluster;
use super::object::random_suffix;
use crate::builtin::{defaults, zero};
use crate::resources::Resource;
use crate::server::status::ApiError;
use crate::store::{GroupResource, ObjectKey};

/// Where containers find their account's token.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const TOKEN_VOLUME: &str = "kube-api-access-";
/// Priority classes that every cluster has.
const SYSTEM_CLASSES: &[(&str, i64)] =
    &[("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];
/// The account of pods that name none. It is made with its namespace.
const DEFAULT_ACCOUNT: &str = "default";
/// Ports from which Services get theirs.
const NODE_PORTS: std::ops::RangeInclusive<i64> = 30_000..=32_767;
/// First two parts of the addresses from which Services get theirs: those of kubeadm's default range.
const SERVICE_RANGE: &str = "10.96";

impl Cluster {
    /// Completes a new object.
    ///
    /// # Errors
    /// 403 for a pod whose ServiceAccount or priority class does not exist.
    pub(super) fn complete(
        &self,
        resource: &Resource,
        namespace: &str,
        object: &mut Value,
    ) -> Result<(), ApiError> {
        if resource.custom.is_some() {
            return Ok(());
        }
        if resource.kind == "Pod" {
            self.give_priority(resource, object)?;
            let (ranges, _) = self.store.list(&GroupResource::new("", "limitranges"), Some(namespace));
            ranges.iter().for_each(|range| give_limits(&range.value, object));
        }
        defaults::on_create(&resource.kind, object);
        if let (Value::Object(status), true) =
            (zero::object(&resource.kind)["status"].take(), object.is_object())
        {
            if object["status"].is_null() {
                object["status"] = json!({});
            }
            for (field, value) in status {
                if object["status"][&field].is_null() {
                    object["status"][field] = value;
                }
            }
        }
        match resource.kind.as_str() {
            "Pod" => self.give_account(resource, namespace, object),
            _ => Ok(()),
        }
    }

    /// Gives a new object, once it is known to be good, what there is only one of.
    pub(super) fn allocate(&self, resource: &Resource, object: &mut Value) {
        if resource.custom.is_none() && resource.kind == "Service" {
            self.give_addresses(object);
        }
    }

    /// Gives a pod the number of its priority class.
    fn give_priority(&self, resource: &Resource, pod: &mut Value) -> Result<(), ApiError> {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let asked = pod["spec"]["priority"].as_i64();
        let agreed = |value: i64| match asked {
            Some(asked) if asked != value => {
                let why = format!(
                    "the integer value of priority ({asked}) must not be provided in pod spec; priority admission controller \
                     computed {value} from the given PriorityClass name"
                );
                Err(ApiError::forbidden(&resource.group_resource(), &name, &why))
            }
            _ => Ok(()),
        };
        let Some(class) = pod["spec"]["priorityClassName"].as_str().filter(|c| !c.is_empty()) else {
            return agreed(0);
        };
        let own =
            SYSTEM_CLASSES.iter().find(|(name, _)| *name == class).map(|(_, value)| json!({"value": value}));
        let key = ObjectKey::new(GroupResource::new("scheduling.k8s.io", "priorityclasses"), "", class);
        let found = own.or_else(|| self.store.get(&key).map(|stored| stored.value.clone()));
        let Some(found) = found else {
            let why = format!("no PriorityClass with name {class} was found");
            return Err(ApiError::forbidden(&resource.group_resource(), &name, &why));
        };
        agreed(found["value"].as_i64().unwrap_or(0))?;
        pod["spec"]["priority"] = found["value"].clone();
        if let Some(policy) = found["preemptionPolicy"].as_str() {
            pod["spec"]["preemptionPolicy"] = policy.into();
        }
        Ok(())
    }

    /// Looks the pod's ServiceAccount up and gives the pod what comes of it: the token's volume and pull secrets.
    fn give_account(&self, resource: &Resource, namespace: &str, pod: &mut Value) -> Result<(), ApiError> {
        let name = pod["spec"]["serviceAccountName"].as_str().unwrap_or(DEFAULT_ACCOUNT).to_owned();
        let key = ObjectKey::new(GroupResource::new("", "serviceaccounts"), namespace, &name);
        let account = self.store.get(&key);
        if account.is_none() && name != DEFAULT_ACCOUNT {
            let why = format!(
                "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
            );
            let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
            return Err(ApiError::forbidden(&resource.group_resource(), pod_name, &why));
        }
        let nothing = Value::Null;
        let account = account.as_ref().map_or(&nothing, |stored| &stored.value);
        let spec = &mut pod["spec"];
        let choice = |value: &Value| value["automountServiceAccountToken"].as_bool();
        if choice(spec).or(choice(account)).unwrap_or(true) {
            mount_token(spec);
        }
        if spec["imagePullSecrets"].as_array().is_none_or(Vec::is_empty)
            && let Some(secrets) = account["imagePullSecrets"].as_array().filter(|s| !s.is_empty())
        {
            spec["imagePullSecrets"] = secrets.iter().map(|s| json!({"name": s["name"]})).collect();
        }
        Ok(())
    }

    /// Gives a Service a cluster address and node ports, where its type has them and it does not bring its own.
    fn give_addresses(&self, service: &mut Value) {
        let (others, _) = self.store.list(&GroupResource::new("", "services"), None);
        let spec = &mut service["spec"];
        let kind = spec["type"].as_str().unwrap_or_default().to_owned();
        if kind == "ExternalName" {
            return;
        }
        for (field, value) in [("ipFamilies", json!(["IPv4"])), ("ipFamilyPolicy", "SingleStack".into())] {
            if spec[field].is_null() {
                spec[field] = value;
            }
        }
        if let Some(own) = spec["clusterIP"].as_str().filter(|ip| !ip.is_empty()).map(str::to_owned)
            && spec["clusterIPs"].is_null()
        {
            spec["clusterIPs"] = json!([own]);
        }
        if spec["clusterIP"].as_str().is_none_or(str::is_empty) {
            let taken: BTreeSet<&str> =
                others.iter().filter_map(|s| s.value["spec"]["clusterIP"].as_str()).collect();
            let mut random = rand::rng();
            // The first addresses of a range are kept for those who ask for one.
            let free = std::iter::repeat_with(|| {
                let (third, fourth) = (random.random_range(1..=255), random.random_range(1..=254));
                format!("{SERVICE_RANGE}.{third}.{fourth}")
            })
            .take(1 << 16)
            .find(|address| !taken.contains(address.as_str()));
            if let Some(address) = free {
                spec["clusterIPs"] = json!([address]);
                spec["clusterIP"] = address.into();
            }
        }
        let wants_ports =
            kind == "NodePort" || (kind == "LoadBalancer" && spec["allocateLoadBalancerNodePorts"] != false);
        if !wants_ports {
            return;
        }
        let ports = |spec: &Value| -> Vec<i64> {
            spec["ports"].as_array().into_iter().flatten().filter_map(|p| p["nodePort"].as_i64()).collect()
        };
        let mut taken: BTreeSet<i64> = others.iter().flat_map(|s| ports(&s.value["spec"])).collect();
        taken.extend(ports(spec));
        for port in spec["ports"].as_array_mut().into_iter().flatten() {
            if port["nodePort"].as_i64().unwrap_or(0) == 0
                && let Some(free) = NODE_PORTS.filter(|p| !taken.contains(p)).nth({
                    let left = NODE_PORTS.count() - taken.len().min(NODE_PORTS.count() - 1);
                    rand::rng().random_range(0..left.max(1))
                })
            {
                taken.insert(free);
                port["nodePort"] = free.into();
            }
        }
    }
}

/// Gives a pod's containers what a LimitRange says that they get, and notes it.
fn give_limits(range: &Value, pod: &mut Value) {
    let mut notes = Vec::new();
    let limits = range["spec"]["limits"].as_array().into_iter().flatten();
    for limit in limits.filter(|limit| limit["type"] == "Container") {
        for (list, what) in [("initContainers", "init container"), ("containers", "container")] {
            for container in pod["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                for (from, to, part) in
                    [("defaultRequest", "requests", "request"), ("default", "limits", "limit")]
                {
                    let mut given = Vec::new();
                    for (resource, amount) in limit[from].as_object().into_iter().flatten() {
                        if container["resources"][to][resource].is_null() {
                            container["resources"][to][resource] = amount.clone();
                            given.push(resource.as_str());
                        }
                    }
                    if !given.is_empty() {
                        let name = container["name"].as_str().unwrap_or_default();
                        notes.push(format!("{} {part} for {what} {name}", given.join(", ")));
                    }
                }
            }
        }
    }
    if !notes.is_empty() {
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        pod["metadata"]["annotations"]["kubernetes.io/limit-ranger"] = note.into();
    }
}

/// Mounts the account's token, bundle and namespace into every container that has nothing at that path.
fn mount_token(spec: &mut Value) {
    let volumes = spec["volumes"].as_array().cloned().unwrap_or_default();
    let own = volumes.iter().filter_map(|v| v["name"].as_str()).find(|n| n.starts_with(TOKEN_VOLUME));
    let name = own.map_or_else(|| format!("{TOKEN_VOLUME}{}", random_suffix()), str::to_owned);
    let has_volume = own.is_some();
    let mut needed = false;
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let mut mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
            if mounts.iter().any(|m| m["mountPath"] == TOKEN_PATH) || !container.is_object() {
                continue;
            }
            mounts.push(json!({"name": name, "readOnly": true, "mountPath": TOKEN_PATH}));
            container["volumeMounts"] = mounts.into();
            needed = true;
        }
    }
    if needed && !has_volume {
        let mut volumes = volumes;
        volumes.push(json!({"name": name, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]}}));
        spec["volumes"] = volumes.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_get_what_a_limit_range_says() {
        let range = json!({"spec": {"limits": [
            {"type": "Container", "default": {"cpu": "2"}, "defaultRequest": {"cpu": "1"}}]}});
        let mut pod = json!({"metadata": {}, "spec": {"containers": [
            {"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "3"}, "limits": {"cpu": "3"}}}]}});
        give_limits(&range, &mut pod);
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}})
        );
        assert_eq!(pod["spec"]["containers"][1]["resources"]["limits"]["cpu"], "3");
        assert_eq!(
            pod["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
            "LimitRanger plugin set: cpu request for container a; cpu limit for container a"
        );
    }

    #[test]
    fn containers_get_a_token_once() {
        let mut spec = json!({"containers": [
            {"name": "a"}, {"name": "b", "volumeMounts": [{"name": "own", "mountPath": TOKEN_PATH}]}]});
        mount_token(&mut spec);
        let name = spec["volumes"][0]["name"].as_str().unwrap();
        assert!(name.starts_with(TOKEN_VOLUME) && name.len() == TOKEN_VOLUME.len() + 5, "{name}");
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], name);
        assert_eq!(spec["containers"][1]["volumeMounts"].as_array().map(Vec::len), Some(1));
        let once = spec.clone();
        mount_token(&mut spec);
        assert_eq!(spec, once);
    }
}
