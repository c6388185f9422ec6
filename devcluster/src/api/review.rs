//! Who the caller is and what callers may do: this API knows no users and allows everything, and says so.

use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{Cluster, answer};
use crate::apply;
use crate::resources::Resource;
use crate::server::status::{ApiError, Cause};
use crate::store::{GroupResource, ObjectKey};

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Shortest and longest life of a token, and what it is unless asked otherwise, in seconds, as on a real API server.
const TOKEN_SECONDS: (i64, i64, i64) = (600, 1 << 32, 3600);

/// The answer to a review of this kind; `None` for kinds that are no reviews.
pub(super) fn status(kind: &str) -> Option<Value> {
    Some(match kind {
        "SelfSubjectAccessReview" | "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            json!({"allowed": true})
        }
        "SelfSubjectRulesReview" => json!({
            "incomplete": false,
            // The first of each allows everything; the others are those that every cluster gives to everybody.
            "resourceRules": [
                {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]},
                {"verbs": ["create"], "apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"]},
                {
                    "verbs": ["create"], "apiGroups": ["authorization.k8s.io"],
                    "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
                },
            ],
            "nonResourceRules": [
                {"verbs": ["*"], "nonResourceURLs": ["*"]},
                {"verbs": ["get"], "nonResourceURLs": ["/healthz", "/livez", "/readyz", "/version", "/version/"]},
                {
                    "verbs": ["get"],
                    "nonResourceURLs": [
                        "/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*", "/readyz",
                        "/version", "/version/",
                    ],
                },
            ],
        }),
        "SelfSubjectReview" => json!({
            "userInfo": {"username": "kubernetes-admin", "groups": ["system:masters", "system:authenticated"]},
        }),
        _ => return None,
    })
}

/// Checks what a review asks.
///
/// # Errors
/// 422 if it does not say whether who may do what, 400 if it is about a namespace and names none.
pub(super) fn check(kind: &str, review: &Value, namespace: &str) -> Result<(), ApiError> {
    let spec = &review["spec"];
    let mut causes = Vec::new();
    match kind {
        "SelfSubjectRulesReview" if spec["namespace"].as_str().unwrap_or(namespace).is_empty() => {
            return Err(ApiError::bad_request("no namespace on request"));
        }
        "SelfSubjectAccessReview" | "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            let (resource, other) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
            if !resource.is_null() && !other.is_null() {
                let why = "cannot be specified in combination with resourceAttributes";
                causes.push(Cause::invalid("spec.nonResourceAttributes", other, why));
            }
            if resource.is_null() && other.is_null() {
                let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
                causes.push(Cause::invalid("spec.resourceAttributes", resource, why));
            }
            let nobody = spec["user"].as_str().unwrap_or_default().is_empty()
                && spec["groups"].as_array().is_none_or(Vec::is_empty);
            if nobody && kind != "SelfSubjectAccessReview" {
                let why = "at least one of user or group must be specified";
                causes.push(Cause::invalid("spec.user", &"".into(), why));
            }
        }
        _ => {}
    }
    match causes.is_empty() {
        true => Ok(()),
        false => {
            let kind = crate::gvk::GroupKind::new("authorization.k8s.io", "");
            Err(ApiError::invalid(&kind, "", causes))
        }
    }
}

/// Answers a request for a token of a service account. It is a JWT with the claims of a real one but without a signature,
/// since nothing here checks it.
///
/// # Errors
/// 422 for a life that is too short or too long.
pub(super) fn token(account: &Value, mut request: Value, now: Timestamp) -> Result<Value, ApiError> {
    let meta = &account["metadata"];
    let (namespace, name) =
        (meta["namespace"].as_str().unwrap_or_default(), meta["name"].as_str().unwrap_or_default());
    let (shortest, longest, usual) = TOKEN_SECONDS;
    let asked = &request["spec"]["expirationSeconds"];
    let seconds = asked.as_i64().unwrap_or(usual);
    let why = match () {
        () if seconds < shortest => Some("may not specify a duration less than 10 minutes"),
        () if seconds > longest => Some("may not specify a duration larger than 2^32 seconds"),
        () => None,
    };
    if let Some(why) = why {
        let kind = crate::gvk::GroupKind::new("authentication.k8s.io", "TokenRequest");
        let cause = Cause::invalid("spec.expirationSeconds", asked, why);
        return Err(ApiError::invalid(&kind, "", vec![cause]));
    }
    let expires = now + SignedDuration::from_secs(seconds);
    let audiences = match &request["spec"]["audiences"] {
        Value::Array(given) if !given.is_empty() => request["spec"]["audiences"].clone(),
        _ => json!([ISSUER]),
    };
    let claims = json!({
        "aud": audiences, "exp": expires.as_second(), "iat": now.as_second(), "nbf": now.as_second(),
        "iss": ISSUER,
        "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": name, "uid": meta["uid"]}},
        "sub": format!("system:serviceaccount:{namespace}:{name}"),
    });
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let token = format!("{}.{}.", part(&json!({"alg": "none", "typ": "JWT"})), part(&claims));
    let at = |time: Timestamp| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    request["kind"] = "TokenRequest".into();
    request["apiVersion"] = "authentication.k8s.io/v1".into();
    request["metadata"] =
        json!({"name": name, "namespace": namespace, "uid": meta["uid"], "creationTimestamp": at(now)});
    if !request["spec"].is_object() {
        request["spec"] = json!({});
    }
    request["spec"]["expirationSeconds"] = seconds.into();
    request["spec"]["audiences"] = audiences;
    if request["spec"].get("boundObjectRef").is_none() {
        request["spec"]["boundObjectRef"] = Value::Null;
    }
    request["status"] = json!({"token": token, "expirationTimestamp": at(expires)});
    Ok(request)
}

/// Whose token this is, if it is one that [`token`] made: the account's namespace and name, and its uid.
fn account_of(token: &str, now: Timestamp) -> Option<(String, String, String)> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    let own = &claims["kubernetes.io"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    (claims["iss"] == ISSUER && claims["exp"].as_i64()? > now.as_second()).then_some(())?;
    Some((
        text(&own["namespace"])?,
        text(&own["serviceaccount"]["name"])?,
        text(&own["serviceaccount"]["uid"])?,
    ))
}

impl Cluster {
    /// Says whose token it is that a TokenReview asks about.
    ///
    /// # Errors
    /// 400 where it asks about none.
    pub(super) fn review_token(
        &self,
        resource: &Resource,
        mut review: Value,
        manager: &str,
        now: Timestamp,
    ) -> Result<Response, ApiError> {
        let token = review["spec"]["token"].as_str().unwrap_or_default();
        if token.is_empty() {
            return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
        }
        let account = account_of(token, now).filter(|(namespace, name, uid)| {
            let key = ObjectKey::new(GroupResource::new("", "serviceaccounts"), namespace, name);
            self.store.get(&key).is_some_and(|account| account.meta("uid") == Some(uid))
        });
        review["kind"] = resource.kind.clone().into();
        review["apiVersion"] = resource.api_version().into();
        if !review["metadata"].is_object() {
            review["metadata"] = json!({});
        }
        review = apply::track_update(None, &review, manager, None, now, &resource.typing);
        let asked = review["spec"].get("audiences").cloned().unwrap_or_default();
        review["status"] = match account {
            Some((namespace, name, uid)) => json!({
                "authenticated": true,
                "user": {
                    "username": format!("system:serviceaccount:{namespace}:{name}"), "uid": uid,
                    "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{namespace}"), "system:authenticated"],
                },
                "audiences": if asked.is_null() { json!([ISSUER]) } else { asked },
            }),
            None => json!({"user": {}, "error": "invalid bearer token"}),
        };
        Ok(answer(201, review, &[]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_name_their_account_and_end() {
        let account = json!({"metadata": {"name": "web", "namespace": "team", "uid": "u"}});
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let made = token(&account, json!({}), now).unwrap();
        assert_eq!(made["status"]["expirationTimestamp"], "2026-01-01T01:00:00Z");
        let parts: Vec<&str> = made["status"]["token"].as_str().unwrap().split('.').collect();
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
        assert_eq!((parts.len(), &claims["sub"]), (3, &json!("system:serviceaccount:team:web")));
        let short = token(&account, json!({"spec": {"expirationSeconds": 1}}), now).unwrap_err();
        assert_eq!(short.code, 422);
        assert!(token(&account, json!({"spec": 3}), now).is_ok());
    }
}
