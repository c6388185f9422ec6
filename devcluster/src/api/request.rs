//! What a request asks for: path, query, media types.

use http::{HeaderMap, Method};

use crate::gvk::GroupKind;
use crate::server::status::{ApiError, Cause};

/// The object, list or subresource that a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// API group; empty for core.
    pub group: String,
    /// Version.
    pub version: String,
    /// Plural name of the resource.
    pub plural: String,
    /// Namespace; empty for cluster-scoped objects and for lists over all namespaces.
    pub namespace: String,
    /// Object name; empty for collections.
    pub name: String,
    /// Subresource; empty for the object itself.
    pub subresource: String,
    /// Whether the path itself asks for a watch.
    pub watch: bool,
}

/// Reads a resource path (`/api/v1/…`, `/apis/GROUP/VERSION/…`); `None` for any other.
pub fn target(path: &str) -> Option<Target> {
    let parts: Vec<String> = path.trim_matches('/').split('/').map(percent_decode).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    // The old way to watch.
    let (watch, rest) = match rest {
        ["watch", rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let make = |namespace: &str, plural: &str, name: &str, subresource: &str| Target {
        watch,
        group: group.into(),
        version: version.into(),
        plural: plural.into(),
        namespace: namespace.into(),
        name: name.into(),
        subresource: subresource.into(),
    };
    Some(match rest {
        // `namespaces/x/status` and `/finalize` are subresources of the namespace itself.
        ["namespaces", name, sub @ ("status" | "finalize")] => make("", "namespaces", name, sub),
        ["namespaces", namespace, plural] => make(namespace, plural, "", ""),
        ["namespaces", namespace, plural, name] => make(namespace, plural, name, ""),
        ["namespaces", namespace, plural, name, sub] => make(namespace, plural, name, sub),
        [plural] => make("", plural, "", ""),
        [plural, name] => make("", plural, name, ""),
        [plural, name, sub] => make("", plural, name, sub),
        _ => return None,
    })
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = (bytes[i] == b'%').then(|| text.get(i + 1..i + 3)).flatten();
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Query parameters in order.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads `a=b&c=d`.
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|p| !p.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(&key.replace('+', " ")), percent_decode(&value.replace('+', " ")))
        });
        Self(pairs.collect())
    }

    /// The first value of a parameter; `None` if absent or empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    /// Whether a parameter is there, if only with an empty value.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(k, _)| k == name)
    }

    /// All values of a parameter.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(k, _)| k == name).map(|(_, v)| v.as_str()).collect()
    }

    /// A flag as a real server reads it: whatever is there and is not `false` or `0` sets it.
    pub fn set(&self, name: &str) -> bool {
        let value = self.0.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
        value.is_some_and(|v| !v.eq_ignore_ascii_case("false") && v != "0")
    }

    /// Whether a flag is set.
    pub fn flag(&self, name: &str) -> bool {
        self.0.iter().any(|(k, v)| k == name && matches!(v.as_str(), "1" | "true" | ""))
    }

    /// A number.
    ///
    /// # Errors
    /// 400 if it is not one.
    pub fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        self.get(name)
            .map(|text| {
                let why = || format!("strconv.ParseInt: parsing {text:?}: invalid syntax");
                text.parse().map_err(|_| ApiError::bad_request(why()))
            })
            .transpose()
    }

    /// The version asked for; none is 0.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn version(&self) -> Result<u64, String> {
        let text = self.get("resourceVersion").unwrap_or("0");
        text.parse().map_err(|_| {
            let why = format!("strconv.ParseUint: parsing {text:?}: invalid syntax");
            format!("resourceVersion: Invalid value: {text:?}: {why}")
        })
    }
}

/// Checks the options of a list or watch, as `ValidateListOptions` in `k8s.io/apimachinery` does.
///
/// # Errors
/// 422 with every option that does not go with the others.
pub fn check_list_options(query: &Query, watch: bool) -> Result<(), ApiError> {
    const EXACT: &str = "Exact";
    const NOT_OLDER: &str = "NotOlderThan";
    let mut causes = Vec::new();
    let version_match = query.get("resourceVersionMatch");
    let initial = query.get("sendInitialEvents").is_some();
    let mut forbid = |field: &str, why: &str| causes.push(Cause::forbidden(field, why));
    if watch && initial && version_match != Some(NOT_OLDER) {
        forbid(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        );
    }
    if let Some(found) = version_match {
        if watch && !initial {
            forbid(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            );
        }
        if !watch && query.get("resourceVersion").is_none() {
            forbid(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            );
        }
        if query.get("continue").is_some() {
            forbid("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided");
        }
        if !watch && found == EXACT && query.get("resourceVersion") == Some("0") {
            forbid(
                "resourceVersionMatch",
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            );
        }
        let allowed: &[&str] = if watch { &[NOT_OLDER] } else { &[EXACT, NOT_OLDER, ""] };
        if !allowed.contains(&found) {
            causes.push(Cause::not_supported("resourceVersionMatch", &found.into(), allowed));
        }
    }
    if !watch && initial {
        causes.push(Cause::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    match causes.is_empty() {
        true => Ok(()),
        false => Err(ApiError::invalid(&GroupKind::new("meta.k8s.io", "ListOptions"), "", causes)),
    }
}

/// Checks the options of a create, update or patch, as `ValidateCreateOptions` and its like in `k8s.io/apimachinery` do.
/// `apply` is whether a patch is server-side apply; `None` for other writes.
///
/// # Errors
/// 422 with every option that is wrong.
pub fn check_write_options(query: &Query, verb: &str, apply: Option<bool>) -> Result<(), ApiError> {
    /// Longest name of a field manager, in bytes.
    const MAX_MANAGER: usize = 128;
    let mut causes = Vec::new();
    let manager = query.get("fieldManager").unwrap_or_default();
    match apply {
        Some(true) if manager.is_empty() => {
            causes.push(Cause::required("fieldManager", "is required for apply patch"));
        }
        Some(false) if query.has("force") => {
            causes.push(Cause::forbidden("force", "may not be specified for non-apply patch"));
        }
        _ => {}
    }
    if manager.len() > MAX_MANAGER {
        causes.push(Cause::too_long("fieldManager", MAX_MANAGER));
    }
    let dry_run = query.all("dryRun");
    if dry_run.iter().any(|value| *value != "All") {
        causes.push(Cause::not_supported("dryRun", &dry_run.into(), &["All"]));
    }
    let validation = query.get("fieldValidation").unwrap_or_default();
    let known = ["", "Ignore", "Strict", "Warn"];
    if !known.contains(&validation) {
        causes.push(Cause::not_supported("fieldValidation", &validation.into(), &known));
    }
    if causes.is_empty() {
        return Ok(());
    }
    let kind = match verb {
        "create" => "CreateOptions",
        "update" => "UpdateOptions",
        _ => "PatchOptions",
    };
    Err(ApiError::invalid(&GroupKind::new("meta.k8s.io", kind), "", causes))
}

/// Checks the options of a deletion, from its body and query, as `ValidateDeleteOptions` in `k8s.io/apimachinery` does.
///
/// # Errors
/// 422 with every option that is wrong.
pub fn check_delete_options(options: &serde_json::Value) -> Result<(), ApiError> {
    let mut causes = Vec::new();
    let policy = &options["propagationPolicy"];
    if !policy.is_null() && !options["orphanDependents"].is_null() {
        let why = "orphanDependents and deletionPropagation cannot be both set";
        causes.push(Cause::invalid("propagationPolicy", policy, why));
    }
    if policy.as_str().is_some_and(|p| !["Foreground", "Background", "Orphan"].contains(&p)) {
        let supported = ["Foreground", "Background", "Orphan", "nil"];
        causes.push(Cause::not_supported("propagationPolicy", policy, &supported));
    }
    let dry_run = &options["dryRun"];
    if dry_run.as_array().is_some_and(|values| values.iter().any(|v| *v != "All")) {
        causes.push(Cause::not_supported("dryRun", dry_run, &["All"]));
    }
    match causes.is_empty() {
        true => Ok(()),
        false => Err(ApiError::invalid(&GroupKind::new("meta.k8s.io", "DeleteOptions"), "", causes)),
    }
}

/// The field manager: as named, else from the user agent.
pub fn manager(query: &Query, headers: &HeaderMap) -> String {
    query.get("fieldManager").map(str::to_owned).unwrap_or_else(|| {
        let agent = headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("unknown");
        let end = agent.find(['/', ' ']).unwrap_or(agent.len());
        agent[..end].to_owned()
    })
}

/// The verb that a method means on a target, as RBAC and discovery name it.
pub fn verb(method: &Method, target: &Target, watch: bool) -> Option<&'static str> {
    let collection = target.name.is_empty();
    Some(match *method {
        Method::GET if (collection && watch) || target.watch => "watch",
        _ if target.watch => return None,
        Method::GET if collection => "list",
        Method::GET => "get",
        Method::POST if collection || !target.subresource.is_empty() => "create",
        Method::PUT if !collection => "update",
        Method::PATCH if !collection => "patch",
        Method::DELETE if collection => "deletecollection",
        Method::DELETE => "delete",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_targets() {
        let t = target("/apis/plimsoll.dev/v1alpha1/namespaces/default/modelpools/chat/status").unwrap();
        assert_eq!(
            (t.group.as_str(), t.namespace.as_str(), t.name.as_str(), t.subresource.as_str()),
            ("plimsoll.dev", "default", "chat", "status")
        );
        let t = target("/api/v1/namespaces/x").unwrap();
        assert_eq!((t.plural.as_str(), t.name.as_str()), ("namespaces", "x"));
        let t = target("/api/v1/namespaces/x/pods").unwrap();
        assert_eq!((t.plural.as_str(), t.namespace.as_str()), ("pods", "x"));
        assert_eq!(target("/healthz"), None);
        assert_eq!(target("/api/v1/nodes/system%3Anode").unwrap().name, "system:node");
    }

    #[test]
    fn list_options_that_exclude_each_other_are_refused() {
        let check = |text: &str, watch| check_list_options(&Query::parse(text), watch).map_err(|e| e.message);
        assert_eq!(check("resourceVersionMatch=Exact&resourceVersion=3", false), Ok(()));
        assert_eq!(check("sendInitialEvents=true&resourceVersionMatch=NotOlderThan", true), Ok(()));
        assert_eq!(
            check("resourceVersionMatch=Exact", false).unwrap_err(),
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless \
             resourceVersion is provided"
        );
        for (text, watch) in [
            ("sendInitialEvents=true", true),
            ("sendInitialEvents=true", false),
            ("resourceVersionMatch=NotOlderThan", true),
            ("resourceVersionMatch=Sideways&resourceVersion=3", false),
            ("resourceVersionMatch=Exact&resourceVersion=0", false),
            ("resourceVersionMatch=Exact&resourceVersion=3&continue=x", false),
        ] {
            assert!(check(text, watch).is_err(), "{text}");
        }
    }
}
