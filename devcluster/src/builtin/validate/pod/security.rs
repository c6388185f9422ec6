//! As whom, and with what rights, pods and containers run.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::field::{At, Faults, inner, is_empty, items, text, texts};

/// The largest number of a user or group.
const MAX_ID: i64 = i32::MAX as i64;
/// A container's security context as a server writes it.
const CONTEXT: &[&str] = &[
    "capabilities",
    "privileged",
    "SELinuxOptions=seLinuxOptions",
    "windowsOptions",
    "runAsUser",
    "runAsGroup",
    "runAsNonRoot",
    "readOnlyRootFilesystem",
    "allowPrivilegeEscalation",
    "procMount",
    "seccompProfile",
    "appArmorProfile",
];

/// Checks the security context of a pod.
pub(super) fn of_pod(spec: &Value, at: &At, faults: &mut Faults) {
    let context = &spec["securityContext"];
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        faults.in_range(&at.child(field), &context[field], 0, MAX_ID);
    }
    for (i, group) in items(&context["supplementalGroups"]).enumerate() {
        faults.in_range(&at.child("supplementalGroups").index(i), group, 0, MAX_ID);
    }
    if spec["shareProcessNamespace"] == true && spec["hostPID"] == true {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        faults.invalid(&at.child("shareProcessNamespace"), true, why);
    }
    sysctls(spec, &at.child("sysctls"), faults);
    faults.one_of(
        &at.child("fsGroupChangePolicy"),
        &context["fsGroupChangePolicy"],
        &["Always", "OnRootMismatch"],
    );
    profiles(context, at, faults);
    faults.one_of(
        &at.child("supplementalGroupsPolicy"),
        &context["supplementalGroupsPolicy"],
        &["Merge", "Strict"],
    );
    faults.one_of(
        &at.child("seLinuxChangePolicy"),
        &context["seLinuxChangePolicy"],
        &["MountOption", "Recursive"],
    );
}

fn sysctls(spec: &Value, at: &At, faults: &mut Faults) {
    let mut seen = BTreeSet::new();
    for (i, sysctl) in items(&spec["securityContext"]["sysctls"]).enumerate() {
        let (at, name) = (at.index(i).child("name"), text(&sysctl["name"]));
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let good = name.len() <= 253
            && name.split(['.', '/']).all(|part| {
                part.starts_with(inner)
                    && part.ends_with(inner)
                    && part.chars().all(|c| inner(c) || c == '-' || c == '_')
            });
        if name.is_empty() {
            faults.required(&at, "");
        } else if !good {
            let why = "must have at most 253 characters and match regex \
                       ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            faults.invalid(&at, name, why);
        } else if !seen.insert(name) {
            faults.duplicate(&at, name);
        }
        if spec["hostNetwork"] == true && (name.starts_with("net.") || name.starts_with("net/")) {
            faults.invalid(&at, name, "may not be specified when 'hostNetwork' is true");
        }
    }
}

/// Checks the security context of a container, if it has one.
pub(super) fn of_container(container: &Value, spec: &Value, at: &At, faults: &mut Faults) {
    let context = &container["securityContext"];
    for field in ["runAsUser", "runAsGroup"] {
        faults.in_range(&at.child(field), &context[field], 0, MAX_ID);
    }
    faults.one_of(&at.child("procMount"), &context["procMount"], &["Default", "Unmasked"]);
    if context["procMount"] == "Unmasked" && spec["hostUsers"] != false {
        let why = "`hostUsers` must be false to use `Unmasked`";
        faults.invalid(&at.child("procMount"), "Unmasked", why);
    }
    let profiles_at = at;
    seccomp(&context["seccompProfile"], &profiles_at.child("seccompProfile"), faults);
    if context["allowPrivilegeEscalation"] == false {
        if context["privileged"] == true {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            faults.invalid_as(at, &inner(context, CONTEXT), why);
        }
        for _ in texts(&context["capabilities"]["add"]).filter(|c| *c == "CAP_SYS_ADMIN") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            faults.invalid_as(at, &inner(context, CONTEXT), why);
        }
    }
    app_armor(&context["appArmorProfile"], &profiles_at.child("appArmorProfile"), faults);
}

fn profiles(context: &Value, at: &At, faults: &mut Faults) {
    seccomp(&context["seccompProfile"], &at.child("seccompProfile"), faults);
    app_armor(&context["appArmorProfile"], &at.child("appArmorProfile"), faults);
}

const PROFILES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];

fn seccomp(profile: &Value, at: &At, faults: &mut Faults) {
    if !profile.is_object() {
        return;
    }
    let kind = text(&profile["type"]);
    let local = at.child("localhostProfile");
    match kind {
        "" => faults.required(&at.child("type"), "type is required when seccompProfile is set"),
        kind if !PROFILES.contains(&kind) => faults.not_supported(&at.child("type"), kind, PROFILES),
        _ => {}
    }
    match (kind, profile["localhostProfile"].as_str()) {
        ("Localhost", None) => faults.required(&local, "must be set when seccomp type is Localhost"),
        ("Localhost", Some(path)) => {
            if path.starts_with('/') {
                faults.invalid(&local, path, "must be a relative path");
            }
            super::volumes::no_steps_back(path, &local, faults);
        }
        (_, Some(_)) => {
            let shown = inner(profile, &["type", "localhostProfile"]);
            faults.invalid_as(&local, &shown, "can only be set when seccomp type is Localhost");
        }
        _ => {}
    }
}

fn app_armor(profile: &Value, at: &At, faults: &mut Faults) {
    if !profile.is_object() {
        return;
    }
    let local = at.child("localhostProfile");
    match (text(&profile["type"]), profile["localhostProfile"].as_str()) {
        ("Localhost", None | Some("")) => {
            faults.required(&local, "must be set when AppArmor type is Localhost");
        }
        ("Localhost", Some(name)) => {
            if name.trim() != name {
                faults.invalid(&local, name, "must not be padded with whitespace");
            }
            if name.len() > 4095 {
                faults.too_long(&local, 4095);
            }
        }
        ("RuntimeDefault" | "Unconfined", Some(name)) => {
            faults.invalid(&local, name, "can only be set when AppArmor type is Localhost");
        }
        ("RuntimeDefault" | "Unconfined", None) => {}
        ("", _) => faults.required(&at.child("type"), "type is required when appArmorProfile is set"),
        (other, _) => faults.not_supported(&at.child("type"), other, PROFILES),
    }
}

/// Pods with users of their own have namespaces of their own.
pub(super) fn users_of_host(spec: &Value, at: &At, faults: &mut Faults) {
    const WHY: &str = "when `hostUsers` is false";
    if spec["hostUsers"] != false {
        return;
    }
    // These are the names that a server gives them.
    for (field, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if spec[field] == true {
            faults.forbidden(&at.child(shown), WHY);
        }
    }
    for list in ["initContainers", "containers"] {
        for (i, container) in items(&spec[list]).enumerate() {
            if !is_empty(&container["volumeDevices"]) {
                faults.forbidden(&at.child(list).index(i).child("volumeDevices"), WHY);
            }
        }
    }
}
