//! ConfigMap and Secret.

use base64::Engine as _;
use serde_json::Value;

use super::field::{At, Faults, IMMUTABLE, entries, same, text};
use super::names;

/// The most bytes of all values together.
const MAX_BYTES: usize = 1 << 20;
const SET_IN_STONE: &str = "field is immutable when `immutable` is set";

/// What was set in stone stays.
fn kept(new: &Value, old: &Value, fields: &[&str], faults: &mut Faults) {
    if old["immutable"] != true {
        return;
    }
    if new["immutable"] != true {
        faults.forbidden(&At::root("immutable"), SET_IN_STONE);
    }
    for field in fields.iter().filter(|field| !same(&new[**field], &old[**field])) {
        faults.forbidden(&At::root(field), SET_IN_STONE);
    }
}

/// The bytes of an encoded value.
fn decoded(value: &Value) -> Vec<u8> {
    let plain: String = text(value).chars().filter(|c| !c.is_whitespace()).collect();
    base64::engine::general_purpose::STANDARD.decode(plain).unwrap_or_default()
}

/// What a ConfigMap keeps.
pub(super) fn config_map_kept(new: &Value, old: &Value, faults: &mut Faults) {
    kept(new, old, &["data", "binaryData"], faults);
}

/// Checks a ConfigMap.
pub(super) fn config_map(map: &Value, faults: &mut Faults) {
    let mut bytes = 0;
    for (key, value) in entries(&map["data"]) {
        let at = At::root("data").key(key);
        faults.invalid_for(&at, key, names::data_key(key));
        if map["binaryData"].get(key).is_some() {
            faults.invalid(&at, key.as_str(), "duplicate of key present in binaryData");
        }
        bytes += text(value).len();
    }
    for (key, value) in entries(&map["binaryData"]) {
        faults.invalid_for(&At::root("binaryData").key(key), key, names::data_key(key));
        bytes += decoded(value).len();
    }
    if bytes > MAX_BYTES {
        faults.too_long(&At::root("[]"), MAX_BYTES);
    }
}

/// What a Secret keeps.
pub(super) fn secret_kept(new: &Value, old: &Value, faults: &mut Faults) {
    if new["type"] != old["type"] {
        faults.invalid(&At::root("type"), new["type"].clone(), IMMUTABLE);
    }
    kept(new, old, &["data"], faults);
}

/// Checks a Secret.
pub(super) fn secret(secret: &Value, faults: &mut Faults) {
    let (data, at) = (&secret["data"], At::root("data"));
    let mut bytes = 0;
    for (key, value) in entries(data) {
        faults.invalid_for(&at.key(key), key, names::data_key(key));
        bytes += decoded(value).len();
    }
    if bytes > MAX_BYTES {
        faults.too_long(&at, MAX_BYTES);
    }
    let missing = |key: &str| data.get(key).is_none();
    match text(&secret["type"]) {
        "kubernetes.io/service-account-token" => {
            const ACCOUNT: &str = "kubernetes.io/service-account.name";
            if text(&secret["metadata"]["annotations"][ACCOUNT]).is_empty() {
                faults.required(&At::root("metadata").child("annotations").key(ACCOUNT), "");
            }
        }
        "kubernetes.io/dockercfg" => login(data, ".dockercfg", &at, faults),
        "kubernetes.io/dockerconfigjson" => login(data, ".dockerconfigjson", &at, faults),
        "kubernetes.io/basic-auth" if missing("username") && missing("password") => {
            faults.required(&at.key("username"), "");
            faults.required(&at.key("password"), "");
        }
        "kubernetes.io/ssh-auth" => faults.some_text(&at.key("ssh-privatekey"), &data["ssh-privatekey"]),
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"].iter().filter(|key| missing(key)) {
                faults.required(&at.key(key), "");
            }
        }
        _ => {}
    }
}

/// Logins to registries are JSON.
fn login(data: &Value, key: &str, at: &At, faults: &mut Faults) {
    let at = at.key(key);
    let Some(value) = data.get(key) else { return faults.required(&at, "") };
    match serde_json::from_slice::<serde_json::Map<String, Value>>(&decoded(value)) {
        Ok(_) => {}
        Err(e) => {
            let why = match e.classify() {
                serde_json::error::Category::Eof => "unexpected end of JSON input".to_owned(),
                _ => e.to_string(),
            };
            faults.invalid(&at, "<secret contents redacted>", &why);
        }
    }
}
