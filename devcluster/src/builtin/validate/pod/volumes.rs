//! The volumes of a pod, and where containers mount them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::super::field::{At, Faults, entries, items, text};
use super::super::{meta, names, resources, storage};
use super::{Of, environment};

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
/// The largest mode of a file.
const MAX_MODE: i64 = 0o777;
/// What a volume may be, in the order in which a server looks.
const SOURCES: &[&str] = &[
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];
/// What a path of the host may be.
const HOST_PATHS: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// The good volumes of a pod by name.
pub(in super::super) type Volumes<'a> = BTreeMap<&'a str, &'a Value>;

/// Checks all volumes; the good ones.
pub(super) fn all<'a>(volumes: &'a Value, of: Of<'_>, at: &At, faults: &mut Faults) -> Volumes<'a> {
    let pod = if let Of::Pod(name) = of { name } else { "" };
    let made: BTreeSet<String> = items(volumes)
        .filter(|v| !pod.is_empty() && v["ephemeral"].is_object())
        .map(|v| format!("{pod}-{}", text(&v["name"])))
        .collect();
    let mut good = Volumes::new();
    for (i, volume) in items(volumes).enumerate() {
        let (at, name, before) = (at.index(i), text(&volume["name"]), faults.count());
        source(volume, of, &at, faults);
        if name.is_empty() {
            faults.required(&at.child("name"), "");
        } else {
            faults.invalid_for(&at.child("name"), name, names::dns_label(name));
        }
        if good.contains_key(name) {
            faults.duplicate(&at.child("name"), name);
        }
        if faults.count() == before {
            good.insert(name, volume);
        }
        let claim = text(&volume["persistentVolumeClaim"]["claimName"]);
        if made.contains(claim) {
            let why = "must not reference a PVC that gets created for an ephemeral volume";
            faults.invalid(&at.child("persistentVolumeClaim").child("claimName"), claim, why);
        }
    }
    good
}

fn source(volume: &Value, of: Of<'_>, at: &At, faults: &mut Faults) {
    let mut given = SOURCES.iter().filter(|kind| volume[**kind].is_object());
    // A volume of nothing is an empty folder.
    let Some(first) = given.next() else { return };
    let (one, own) = (&volume[*first], at.child(first));
    match *first {
        "emptyDir" if resources::amount(&one["sizeLimit"]).is_some_and(|a| a < 0) => {
            let why = "SizeLimit field must be a valid resource quantity";
            faults.forbidden(&own.child("sizeLimit"), why);
        }
        "hostPath" => host_path(one, &own, faults),
        "secret" => {
            faults.some_text(&own.child("secretName"), &one["secretName"]);
            keys(one, &own, faults);
        }
        "configMap" => {
            faults.some_text(&own.child("name"), &one["name"]);
            keys(one, &own, faults);
        }
        "nfs" => nfs(one, &own, faults),
        "persistentVolumeClaim" => faults.some_text(&own.child("claimName"), &one["claimName"]),
        "downwardAPI" => {
            mode(&one["defaultMode"], &own.child("defaultMode"), faults);
            items(&one["items"]).for_each(|file| downward(file, &own, faults));
        }
        "projected" => projected(one, &own, faults),
        "csi" => {
            storage::driver(text(&one["driver"]), &own.child("driver"), faults);
            let secret = &one["nodePublishSecretRef"];
            if secret.is_object() {
                faults.some_text(&own.child("nodePublishSecretRef").child("name"), &secret["name"]);
            }
        }
        "ephemeral" => ephemeral(volume, of, at, faults),
        "image" => {
            if of != Of::Template {
                faults.some_text(&own.child("reference"), &one["reference"]);
            }
            let pulls = ["Always", "IfNotPresent", "Never"];
            faults.one_of(&own.child("pullPolicy"), &one["pullPolicy"], &pulls);
        }
        _ => {}
    }
    for other in given {
        faults.forbidden(&at.child(other), "may not specify more than 1 volume type");
    }
}

/// Checks a path of the host.
pub(in super::super) fn host_path(path: &Value, at: &At, faults: &mut Faults) {
    if text(&path["path"]).is_empty() {
        return faults.required(&at.child("path"), "");
    }
    no_steps_back(text(&path["path"]), &at.child("path"), faults);
    if let Some(kind) = path["type"].as_str().filter(|k| !HOST_PATHS.contains(k)) {
        faults.not_supported(&at.child("type"), kind, HOST_PATHS);
    }
}

/// Checks a path of an NFS server.
pub(in super::super) fn nfs(nfs: &Value, at: &At, faults: &mut Faults) {
    faults.some_text(&at.child("server"), &nfs["server"]);
    faults.some_text(&at.child("path"), &nfs["path"]);
    if !text(&nfs["path"]).starts_with('/') {
        faults.invalid(&at.child("path"), text(&nfs["path"]), "must be an absolute path");
    }
}

fn mode(mode: &Value, at: &At, faults: &mut Faults) {
    if mode.as_i64().is_some_and(|m| !(0..=MAX_MODE).contains(&m)) {
        faults.invalid(at, mode.clone(), MODE);
    }
}

/// The files that keys become.
fn keys(source: &Value, at: &At, faults: &mut Faults) {
    mode(&source["defaultMode"], &at.child("defaultMode"), faults);
    for (i, item) in items(&source["items"]).enumerate() {
        key_to_path(item, &at.child("items").index(i), faults);
    }
}

fn key_to_path(item: &Value, at: &At, faults: &mut Faults) {
    faults.some_text(&at.child("key"), &item["key"]);
    faults.some_text(&at.child("path"), &item["path"]);
    inside(text(&item["path"]), &at.child("path"), faults);
    mode(&item["mode"], &at.child("mode"), faults);
}

fn downward(file: &Value, at: &At, faults: &mut Faults) {
    faults.some_text(&at.child("path"), &file["path"]);
    inside(text(&file["path"]), &at.child("path"), faults);
    let (field, amount) = (&file["fieldRef"], &file["resourceFieldRef"]);
    if field.is_object() {
        environment::field(field, environment::OF_FILES, &at.child("fieldRef"), faults);
        if amount.is_object() {
            let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
            faults.invalid(at, "resource", why);
        }
    } else if amount.is_object() {
        environment::amount(amount, true, &at.child("resourceFieldRef"), faults);
    } else {
        faults.required(at, "one of fieldRef and resourceFieldRef is required");
    }
    mode(&file["mode"], &at.child("mode"), faults);
}

fn projected(volume: &Value, at: &At, faults: &mut Faults) {
    mode(&volume["defaultMode"], &at.child("defaultMode"), faults);
    let mut paths = BTreeSet::new();
    let mut once = |path: &str, shown: &str, faults: &mut Faults| {
        if !path.is_empty() && !paths.insert(path.to_owned()) {
            faults.invalid(at, shown, "conflicting duplicate paths");
        }
    };
    for (i, source) in items(&volume["sources"]).enumerate() {
        let own = at.child("sources").index(i);
        for kind in ["secret", "configMap"] {
            let one = &source[kind];
            if !one.is_object() {
                continue;
            }
            let at = own.child(kind);
            faults.some_text(&at.child("name"), &one["name"]);
            for (k, item) in items(&one["items"]).enumerate() {
                key_to_path(item, &at.child("items").index(k), faults);
                once(text(&item["path"]), text(&one["name"]), faults);
            }
        }
        for file in items(&source["downwardAPI"]["items"]) {
            downward(file, &own.child("downwardAPI"), faults);
            once(text(&file["path"]), text(&file["path"]), faults);
        }
        let token = &source["serviceAccountToken"];
        if token.is_object() {
            let expiry = own.child("serviceAccountToken").child("expirationSeconds");
            let seconds = token["expirationSeconds"].as_i64().unwrap_or(3600);
            if seconds < 600 {
                faults.invalid(&expiry, seconds, "may not specify a duration less than 10 minutes");
            }
            if seconds > 1 << 32 {
                faults.invalid(&expiry, seconds, "may not specify a duration larger than 2^32 seconds");
            }
            faults.some_text(&at.child("path"), &token["path"]);
            inside(text(&token["path"]), &at.child("path"), faults);
        }
        if source.as_object().is_some_and(|kinds| kinds.len() > 1) {
            faults.forbidden(&own, "may not specify more than 1 volume type per source");
        }
    }
}

fn ephemeral(volume: &Value, of: Of<'_>, at: &At, faults: &mut Faults) {
    let (template, own) =
        (&volume["ephemeral"]["volumeClaimTemplate"], at.child("ephemeral").child("volumeClaimTemplate"));
    if template.is_null() {
        faults.required(&own, "");
    } else {
        claim_metadata(&template["metadata"], &own.child("metadata"), faults);
        storage::claim_spec(&template["spec"], &own.child("spec"), faults);
    }
    let name = text(&volume["name"]);
    if let Of::Pod(pod) = of
        && !pod.is_empty()
        && !name.is_empty()
    {
        let claim = format!("{pod}-{name}");
        for why in names::dns_subdomain(&claim) {
            faults.invalid(&at.child("name"), name, &format!("PVC name {claim:?}: {why}"));
        }
    }
}

/// Checks the metadata of claims to come, of which only labels and annotations count.
fn claim_metadata(metadata: &Value, at: &At, faults: &mut Faults) {
    meta::annotations(&metadata["annotations"], &at.child("annotations"), faults);
    meta::labels(&metadata["labels"], &at.child("labels"), faults);
    for (field, value) in entries(metadata) {
        if field != "annotations" && field != "labels" && !value.is_null() {
            faults.forbidden(&at.child(field), "cannot be set");
        }
    }
}

/// Checks that a path does not lead upwards.
pub(in super::super) fn no_steps_back(path: &str, at: &At, faults: &mut Faults) {
    if path.split('/').any(|part| part == "..") {
        faults.invalid(at, path, "must not contain '..'");
    }
}

fn below(path: &str, at: &At, faults: &mut Faults) {
    if path.starts_with('/') {
        faults.invalid(at, path, "must be a relative path");
    }
    no_steps_back(path, at, faults);
}

/// Checks that a path leads to somewhere in the volume.
fn inside(path: &str, at: &At, faults: &mut Faults) {
    below(path, at, faults);
    if path.starts_with("..") && !path.starts_with("../") {
        faults.invalid(at, path, "must not start with '..'");
    }
}

/// Checks where a container mounts volumes.
pub(super) fn mounts(container: &Value, volumes: &Volumes<'_>, at: &At, faults: &mut Faults) {
    let list_at = at.child("volumeMounts");
    let devices = |field: &str, value: &str| {
        items(&container["volumeDevices"]).any(|d| !value.is_empty() && text(&d[field]) == value)
    };
    let mut paths = BTreeSet::new();
    for (i, mount) in items(&container["volumeMounts"]).enumerate() {
        let at = list_at.index(i);
        let (name, path) = (text(&mount["name"]), text(&mount["mountPath"]));
        faults.some_text(&at.child("name"), &mount["name"]);
        if !volumes.contains_key(name) {
            faults.not_found(&at.child("name"), name, "");
        }
        faults.some_text(&at.child("mountPath"), &mount["mountPath"]);
        if !paths.insert(path) {
            faults.invalid(&at.child("mountPath"), path, "must be unique");
        }
        if devices("name", name) {
            faults.invalid(&at.child("name"), name, "must not already exist in volumeDevices");
        }
        if devices("devicePath", path) {
            let why = "must not already exist as a path in volumeDevices";
            faults.invalid(&at.child("mountPath"), path, why);
        }
        // A server leaves the number of the mount out of these paths.
        let (sub, expression) = (text(&mount["subPath"]), text(&mount["subPathExpr"]));
        if !sub.is_empty() {
            below(sub, &list_at.child("subPath"), faults);
        }
        if !expression.is_empty() {
            if !sub.is_empty() {
                let why = "subPathExpr and subPath are mutually exclusive";
                faults.invalid(&at.child("subPathExpr"), expression, why);
            }
            below(expression, &list_at.child("subPathExpr"), faults);
        }
        propagation(mount, container, &list_at, faults);
    }
}

fn propagation(mount: &Value, container: &Value, at: &At, faults: &mut Faults) {
    let all = ["Bidirectional", "HostToContainer", "None"];
    let given = mount["mountPropagation"].as_str();
    if let Some(given) = given {
        let at = at.child("mountPropagation");
        if !all.contains(&given) {
            faults.not_supported(&at, given, &all);
        }
        if given == "Bidirectional" && container["securityContext"]["privileged"] != true {
            let why = "Bidirectional mount propagation is available only to privileged containers";
            faults.forbidden(&at, why);
        }
    }
    let at = at.child("recursiveReadOnly");
    match mount["recursiveReadOnly"].as_str() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if mount["readOnly"] != true {
                faults.forbidden(&at, "may only be specified when readOnly is true");
            }
            if given.is_some_and(|g| g != "None") {
                let why = "may only be specified when mountPropagation is None or not specified";
                faults.forbidden(&at, why);
            }
        }
        Some(other) => faults.not_supported(&at, other, &["Disabled", "Enabled", "IfPossible"]),
    }
}

/// Checks which volumes a container uses as devices.
pub(super) fn devices(container: &Value, volumes: &Volumes<'_>, at: &At, faults: &mut Faults) {
    let mounts = |field: &str, value: &str| {
        items(&container["volumeMounts"]).any(|m| !value.is_empty() && text(&m[field]) == value)
    };
    let (mut paths, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for (i, device) in items(&container["volumeDevices"]).enumerate() {
        let at = at.index(i);
        let (name, path) = (text(&device["name"]), text(&device["devicePath"]));
        faults.some_text(&at.child("name"), &device["name"]);
        if seen.contains(name) {
            faults.invalid(&at.child("name"), name, "must be unique");
        }
        match volumes.get(name) {
            None => faults.not_found(&at.child("name"), name, ""),
            Some(volume) => {
                if !volume["persistentVolumeClaim"].is_object() && !volume["ephemeral"].is_object() {
                    let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                    faults.invalid(&at.child("name"), name, why);
                }
            }
        }
        faults.some_text(&at.child("devicePath"), &device["devicePath"]);
        if paths.contains(path) {
            faults.invalid(&at.child("devicePath"), path, "must be unique");
        }
        if path.split('/').any(|part| part == "..") {
            faults.invalid(&at.child("devicePath"), path, "can not contain backsteps ('..')");
        } else {
            paths.insert(path);
        }
        if mounts("name", name) {
            faults.invalid(&at.child("name"), name, "must not already exist in volumeMounts");
        }
        if mounts("mountPath", path) {
            let why = "must not already exist as a path in volumeMounts";
            faults.invalid(&at.child("devicePath"), path, why);
        }
        if !name.is_empty() {
            seen.insert(name);
        }
    }
}
