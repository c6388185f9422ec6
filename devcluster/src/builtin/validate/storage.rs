//! Claims, volumes, and the kinds around them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::field::{At, Faults, IMMUTABLE, entries, is_empty, items, same, text, texts};
use super::{names, pod, resources, selectors};

const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
/// Sources of volumes beside those of pods, which a claim is bound to.
const SOURCES: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];
/// The longest name of a node in a driver.
const MAX_NODE_ID: usize = 256;

/// Checks the spec of a claim.
pub(super) fn claim_spec(spec: &Value, at: &At, faults: &mut Faults) {
    if is_empty(&spec["accessModes"]) {
        faults.required(&at.child("accessModes"), "at least 1 access mode is required");
    }
    if spec["selector"].is_object() {
        selectors::labels(&spec["selector"], &at.child("selector"), faults);
    }
    access_modes(&spec["accessModes"], &at.child("accessModes"), faults);
    let (storage, storage_at) =
        (&spec["resources"]["requests"]["storage"], at.child("resources").key("storage"));
    if storage.is_null() {
        faults.required(&storage_at, "");
    } else {
        resources::positive(storage, &storage_at, faults);
    }
    class_name(spec, at, faults);
    faults.one_of(&at.child("volumeMode"), &spec["volumeMode"], VOLUME_MODES);
    let (source, reference) = (&spec["dataSource"], &spec["dataSourceRef"]);
    for (one, field) in [(source, "dataSource"), (reference, "dataSourceRef")] {
        if one.is_object() {
            data_source(one, &at.child(field), faults);
        }
    }
    let namespace = text(&reference["namespace"]);
    if source.is_object() && reference.is_object() {
        let differ = ["apiGroup", "kind", "name"].iter().any(|field| source[field] != reference[field]);
        if !namespace.is_empty() {
            let why = "may not be specified when dataSourceRef.namespace is specified";
            faults.invalid(at, String::from(&at.child("dataSource")), why);
        } else if differ {
            faults.invalid(at, String::from(&at.child("dataSource")), "must match dataSourceRef");
        }
    }
}

fn access_modes(modes: &Value, at: &At, faults: &mut Faults) {
    let all: Vec<&str> = texts(modes).collect();
    for mode in all.iter().filter(|mode| !MODES.contains(mode)) {
        faults.not_supported(at, *mode, MODES);
    }
    let others = all.iter().any(|m| *m != "ReadWriteOncePod" && MODES.contains(m));
    if all.contains(&"ReadWriteOncePod") && others {
        faults.forbidden(at, "may not use ReadWriteOncePod with other access modes");
    }
}

fn class_name(spec: &Value, at: &At, faults: &mut Faults) {
    for field in ["storageClassName", "volumeAttributesClassName"] {
        let class = text(&spec[field]);
        if !class.is_empty() {
            faults.invalid_for(&at.child(field), class, names::dns_subdomain(class));
        }
    }
}

fn data_source(source: &Value, at: &At, faults: &mut Faults) {
    faults.some_text(&at.child("name"), &source["name"]);
    faults.some_text(&at.child("kind"), &source["kind"]);
    let (group, kind) = (text(&source["apiGroup"]), text(&source["kind"]));
    if group.is_empty() && kind != "PersistentVolumeClaim" {
        let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        faults.invalid(at, kind, why);
    }
    if !group.is_empty() {
        faults.invalid_for(&at.child("apiGroup"), group, names::dns_subdomain(group));
    }
    let namespace = text(&source["namespace"]);
    if !namespace.is_empty() {
        faults.invalid_for(&at.child("namespace"), namespace, names::dns_label(namespace));
    }
}

/// What a claim keeps: all but its volume, which binding sets once, and, once it is bound, more than it asked for.
pub(super) fn claim_kept(new: &Value, old: &Value, faults: &mut Faults) {
    let bound = new["status"]["phase"] == "Bound";
    let fixed = |claim: &Value| {
        let mut spec = claim["spec"].clone();
        if let Some(fields) = spec.as_object_mut() {
            if text(&old["spec"]["volumeName"]).is_empty() {
                fields.remove("volumeName");
            }
            if old["spec"]["storageClassName"].is_null() {
                fields.remove("storageClassName");
            }
            if bound {
                fields.remove("volumeAttributesClassName");
                if let Some(asked) = fields.get_mut("resources").and_then(|r| r.get_mut("requests")) {
                    asked.as_object_mut().map(|asked| asked.remove("storage"));
                }
            }
        }
        spec
    };
    if !same(&fixed(new), &fixed(old)) {
        faults.forbidden(
            &At::root("spec"),
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        );
    }
    let size = |value: &Value| resources::amount(value).unwrap_or(0);
    let asked = |claim: &Value| size(&claim["spec"]["resources"]["requests"]["storage"]);
    if asked(new) < asked(old) && asked(new) <= size(&old["status"]["capacity"]["storage"]) {
        let at = At::root("spec").child("resources").child("requests").child("storage");
        faults.forbidden(&at, "field can not be less than status.capacity");
    }
    if new["spec"]["volumeMode"] != old["spec"]["volumeMode"] {
        faults.invalid(&At::root("volumeMode"), new["spec"]["volumeMode"].clone(), IMMUTABLE);
    }
}

/// Checks a volume.
pub(super) fn volume(volume: &Value, faults: &mut Faults) {
    let (spec, at) = (&volume["spec"], At::root("spec"));
    if is_empty(&spec["accessModes"]) {
        faults.required(&at.child("accessModes"), "");
    }
    access_modes(&spec["accessModes"], &at.child("accessModes"), faults);
    let (capacity, capacity_at) = (&spec["capacity"], at.child("capacity"));
    if is_empty(capacity) {
        faults.required(&capacity_at, "");
    }
    if capacity.get("storage").is_none() || entries(capacity).count() > 1 {
        faults.not_supported(&capacity_at, capacity.clone(), &["storage"]);
    }
    for (resource, amount) in entries(capacity) {
        resources::positive(amount, &capacity_at.key(resource), faults);
    }
    let policies = ["Delete", "Recycle", "Retain"];
    let policy = &spec["persistentVolumeReclaimPolicy"];
    faults.one_of(&at.child("persistentVolumeReclaimPolicy"), policy, &policies);
    let affinity = &spec["nodeAffinity"];
    if affinity.is_object() {
        let at = at.child("nodeAffinity").child("required");
        match affinity["required"].is_object() {
            true => selectors::nodes(&affinity["required"], &at, faults),
            false => faults.required(&at, "must specify required node constraints"),
        }
    }
    volume_source(spec, &at, faults);
    if spec["hostPath"]["path"] == "/" && policy == "Recycle" {
        let why = "may not be 'recycle' for a hostPath mount of '/'";
        faults.forbidden(&at.child("persistentVolumeReclaimPolicy"), why);
    }
    class_name(spec, &at, faults);
    faults.one_of(&at.child("volumeMode"), &spec["volumeMode"], VOLUME_MODES);
}

fn volume_source(spec: &Value, at: &At, faults: &mut Faults) {
    let mut given = SOURCES.iter().filter(|kind| spec[**kind].is_object());
    let Some(first) = given.next() else {
        return faults.required(at, "must specify a volume type");
    };
    let (one, own) = (&spec[*first], at.child(first));
    match *first {
        "hostPath" => pod::host_path(one, &own, faults),
        "nfs" => pod::nfs(one, &own, faults),
        "local" => {
            let path = text(&one["path"]);
            if path.is_empty() {
                faults.required(&own.child("path"), "");
            } else {
                pod::no_steps_back(path, &own.child("path"), faults);
            }
            if !spec["nodeAffinity"].is_object() {
                faults.required(&at.child("nodeAffinity"), "Local volume requires node affinity");
            }
        }
        "csi" => {
            driver(text(&one["driver"]), &own.child("driver"), faults);
            faults.some_text(&own.child("volumeHandle"), &one["volumeHandle"]);
        }
        _ => {}
    }
    for other in given {
        faults.forbidden(&at.child(other), "may not specify more than 1 volume type");
    }
}

/// What a volume keeps: where its data are.
pub(super) fn volume_kept(new: &Value, old: &Value, faults: &mut Faults) {
    let (new, old) = (&new["spec"], &old["spec"]);
    if SOURCES.iter().any(|kind| !same(&new[*kind], &old[*kind])) {
        let at = At::root("spec").child("persistentvolumesource");
        faults.forbidden(&at, "spec.persistentvolumesource is immutable after creation");
    }
    if new["volumeMode"] != old["volumeMode"] {
        faults.invalid(&At::root("volumeMode"), new["volumeMode"].clone(), IMMUTABLE);
    }
    if old["nodeAffinity"].is_object() && !same(&new["nodeAffinity"], &old["nodeAffinity"]) {
        faults.invalid(&At::root("nodeAffinity"), new["nodeAffinity"].clone(), IMMUTABLE);
    }
}

/// Checks the name of a driver.
pub(super) fn driver(name: &str, at: &At, faults: &mut Faults) {
    if name.is_empty() {
        return faults.required(at, "");
    }
    if name.len() > 63 {
        faults.too_long(at, 63);
    }
    faults.invalid_for(at, name, names::dns_subdomain(&name.to_lowercase()));
}

/// Checks a StorageClass.
pub(super) fn class(class: &Value, faults: &mut Faults) {
    let provisioner = text(&class["provisioner"]);
    if provisioner.is_empty() {
        faults.required(&At::root("provisioner"), "");
    } else {
        let lower = provisioner.to_lowercase();
        faults.invalid_for(&At::root("provisioner"), &lower, names::qualified_name(&lower));
    }
    for (key, _) in entries(&class["parameters"]).filter(|(key, _)| key.is_empty()) {
        faults.invalid(&At::root("parameters"), key.as_str(), "field can not be empty.");
    }
    faults.one_of(&At::root("reclaimPolicy"), &class["reclaimPolicy"], &["Delete", "Retain"]);
    let modes = ["Immediate", "WaitForFirstConsumer"];
    faults.one_of(&At::root("volumeBindingMode"), &class["volumeBindingMode"], &modes);
    for (i, term) in items(&class["allowedTopologies"]).enumerate() {
        let at = At::root("allowedTopologies").index(i).child("matchLabelExpressions");
        let mut keys = BTreeSet::new();
        for (e, wanted) in items(&term["matchLabelExpressions"]).enumerate() {
            let (at, key) = (at.index(e), text(&wanted["key"]));
            if is_empty(&wanted["values"]) {
                faults.required(&at.child("values"), "");
            }
            let mut values = BTreeSet::new();
            for (v, value) in texts(&wanted["values"]).enumerate().filter(|(_, v)| !values.insert(*v)) {
                faults.duplicate(&at.child("values").index(v), value);
            }
            faults.invalid_for(&at.child("key"), key, names::qualified_name(key));
            if !keys.insert(key) {
                faults.duplicate(&at.child("key"), key);
            }
        }
    }
}

/// What a StorageClass keeps.
pub(super) fn class_kept(new: &Value, old: &Value, faults: &mut Faults) {
    for field in ["parameters", "provisioner", "reclaimPolicy"] {
        if !same(&new[field], &old[field]) {
            faults.forbidden(&At::root(field), &format!("updates to {field} are forbidden."));
        }
    }
    let mode = "volumeBindingMode";
    if new[mode] != old[mode] {
        faults.invalid(&At::root(mode), new[mode].clone(), IMMUTABLE);
    }
}

/// Checks a CSIDriver.
pub(super) fn csi_driver(object: &Value, faults: &mut Faults) {
    let (spec, at) = (&object["spec"], At::root("spec"));
    let policies = ["File", "None", "ReadWriteOnceWithFSType"];
    faults.one_of(&at.child("fsGroupPolicy"), &spec["fsGroupPolicy"], &policies);
    let mut audiences = BTreeSet::new();
    for (i, request) in items(&spec["tokenRequests"]).enumerate() {
        let (at, audience) = (at.child("tokenRequests").index(i), text(&request["audience"]));
        if !audiences.insert(audience) {
            faults.duplicate(&at.child("audience"), audience);
            continue;
        }
        let seconds = &request["expirationSeconds"];
        if seconds.as_i64().is_some_and(|s| s < 600) {
            let why = "may not specify a duration less than 10 minutes";
            faults.invalid(&at.child("expirationSeconds"), seconds.clone(), why);
        }
    }
    for mode in texts(&spec["volumeLifecycleModes"]) {
        if !["Persistent", "Ephemeral"].contains(&mode) {
            faults.not_supported(&at.child("volumeLifecycleModes"), mode, &["Persistent", "Ephemeral"]);
        }
    }
}

/// What a CSIDriver keeps.
pub(super) fn csi_driver_kept(new: &Value, old: &Value, faults: &mut Faults) {
    let at = At::root("spec");
    for (field, shown) in
        [("attachRequired", "attachedRequired"), ("volumeLifecycleModes", "volumeLifecycleModes")]
    {
        if !same(&new["spec"][field], &old["spec"][field]) {
            faults.invalid(&at.child(shown), new["spec"][field].clone(), IMMUTABLE);
        }
    }
}

/// Checks a CSINode.
pub(super) fn csi_node(node: &Value, faults: &mut Faults) {
    let mut seen = BTreeSet::new();
    for (i, one) in items(&node["spec"]["drivers"]).enumerate() {
        let at = At::root("spec").child("drivers").index(i);
        let (name, id) = (text(&one["name"]), text(&one["nodeID"]));
        driver(name, &at.child("name"), faults);
        faults.some_text(&at.child("nodeID"), &one["nodeID"]);
        if id.len() > MAX_NODE_ID {
            let why = format!("must be {MAX_NODE_ID} characters or less");
            faults.invalid(&at.child("nodeID"), id, &why);
        }
        faults.not_negative(&at.child("allocatable").child("count"), &one["allocatable"]["count"]);
        if !seen.insert(name) {
            faults.duplicate(&at.child("name"), name);
        }
        let mut keys = BTreeSet::new();
        for key in texts(&one["topologyKeys"]) {
            if key.is_empty() {
                faults.required(&at, "");
            }
            if !keys.insert(key) {
                faults.duplicate(&at, key);
            }
            faults.invalid_for(&at, key, names::qualified_name(key));
        }
    }
}

/// Checks a CSIStorageCapacity.
pub(super) fn csi_capacity(new: &Value, old: Option<&Value>, faults: &mut Faults) {
    if new["nodeTopology"].is_object() {
        selectors::labels(&new["nodeTopology"], &At::root("nodeTopology"), faults);
    }
    let class = text(&new["storageClassName"]);
    faults.invalid_for(&At::root("storageClassName"), class, names::dns_subdomain(class));
    resources::not_negative(&new["capacity"], &At::root("capacity"), faults);
    if let Some(old) = old {
        if !same(&new["nodeTopology"], &old["nodeTopology"]) {
            let shown = selectors::shown(&new["nodeTopology"]);
            faults.invalid_as(&At::root("nodeTopology"), &shown, IMMUTABLE);
        }
        if new["storageClassName"] != old["storageClassName"] {
            faults.invalid(&At::root("storageClassName"), class, IMMUTABLE);
        }
    }
}

/// Checks a VolumeAttachment.
pub(super) fn attachment(new: &Value, old: Option<&Value>, faults: &mut Faults) {
    let (spec, at) = (&new["spec"], At::root("spec"));
    faults.some_text(&at.child("attacher"), &spec["attacher"]);
    let source = &spec["source"];
    let (inline, name) = (source["inlineVolumeSpec"].is_object(), source["persistentVolumeName"].as_str());
    let why = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (inline, name) {
        (false, None) => faults.required(&at.child("source"), why),
        (true, Some(_)) => faults.forbidden(&at.child("source"), why),
        (false, Some("")) => {
            let at = at.child("source").child("persistentVolumeName");
            faults.required(&at, "must specify non empty persistentVolumeName");
        }
        _ => {}
    }
    let node = text(&spec["nodeName"]);
    faults.invalid_for(&at.child("nodeName"), node, names::dns_subdomain(node));
    match old {
        Some(old) if !same(spec, &old["spec"]) => faults.invalid(&at, spec.clone(), IMMUTABLE),
        Some(_) => {}
        None => {
            driver(text(&spec["attacher"]), &at.child("attacher"), faults);
            if let Some(name) = name {
                let at = at.child("source").child("persistentVolumeName");
                faults.invalid_for(&at, name, names::dns_subdomain(name));
            }
        }
    }
}
