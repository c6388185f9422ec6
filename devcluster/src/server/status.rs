//! Failures as `metav1.Status`, worded as `k8s.io/apimachinery/pkg/api/errors` words them: `kubectl` prints these texts.

use serde_json::{Map, Value, json};

use crate::gvk::GroupKind;
use crate::schema::{ErrorKind, FieldError};
use crate::store::{Expired, GroupResource};

/// One entry of `details.causes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Machine-readable class, such as `FieldValueInvalid`.
    pub reason: String,
    /// What is wrong.
    pub message: String,
    /// The field, if one is to blame.
    pub field: String,
}

impl Cause {
    /// A missing field.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        let message =
            if detail.is_empty() { "Required value".into() } else { format!("Required value: {detail}") };
        Self { reason: "FieldValueRequired".into(), message, field: field.into() }
    }

    /// A wrong value.
    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {value}: {detail}"),
            field: field.into(),
        }
    }

    /// A value outside an enumeration.
    pub fn not_supported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let list = supported.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", ");
        Self {
            reason: "FieldValueNotSupported".into(),
            message: format!("Unsupported value: {value}: supported values: {list}"),
            field: field.into(),
        }
    }

    /// A value of more bytes than a field takes.
    pub fn too_long(field: impl Into<String>, most_bytes: usize) -> Self {
        Self {
            reason: "FieldValueTooLong".into(),
            message: format!("Too long: may not be more than {most_bytes} bytes"),
            field: field.into(),
        }
    }

    /// A field that may not be set or changed.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self {
            reason: "FieldValueForbidden".into(),
            message: format!("Forbidden: {detail}"),
            field: field.into(),
        }
    }

    fn to_json(&self) -> Value {
        let mut out = Map::new();
        out.insert("reason".into(), self.reason.clone().into());
        out.insert("message".into(), self.message.clone().into());
        if !self.field.is_empty() {
            out.insert("field".into(), self.field.clone().into());
        }
        Value::Object(out)
    }
}

impl From<&FieldError> for Cause {
    fn from(e: &FieldError) -> Self {
        let field = if e.path.is_empty() { "<nil>".to_owned() } else { e.path.clone() };
        Self { reason: e.kind.reason().into(), message: e.body(), field }
    }
}

impl Cause {
    /// Whether rules of a custom resource are not checked after it.
    pub(crate) fn blocks_rules(&self) -> bool {
        ErrorKind::BLOCKING.iter().any(|kind| kind.reason() == self.reason)
    }
}

/// The object that a failed request is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// Its name.
    pub name: String,
    /// Its group.
    pub group: String,
    /// Its resource, or its kind for `Invalid`.
    pub kind: String,
}

/// A failed request. `Display` is its message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status code.
    pub code: u16,
    /// Reason, such as `NotFound`.
    pub reason: &'static str,
    /// What `kubectl` prints.
    pub message: String,
    /// The object at fault.
    pub subject: Box<Subject>,
    /// Fields at fault.
    pub causes: Vec<Cause>,
    /// Seconds after which a retry may succeed; 0 for none.
    pub retry_after_s: u32,
    /// What clients are warned of besides.
    pub warnings: Vec<String>,
    /// Whether a real server's own plumbing says so, which gives details even if there are none.
    pub generic: bool,
}

impl ApiError {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            subject: Box::default(),
            causes: Vec::new(),
            retry_after_s: 0,
            warnings: Vec::new(),
            generic: false,
        }
    }

    /// The same with warnings before those it has.
    #[must_use]
    pub fn warned(mut self, warnings: &[String]) -> Self {
        self.warnings.splice(0..0, warnings.iter().cloned());
        self
    }

    fn generic(mut self) -> Self {
        self.generic = true;
        self
    }

    fn about(mut self, resource: &GroupResource, name: &str) -> Self {
        self.subject.group = resource.group.as_str().into();
        self.subject.kind = resource.resource.as_str().into();
        self.subject.name = name.into();
        self
    }

    fn cause(mut self, cause: Cause) -> Self {
        self.causes.push(cause);
        self
    }

    /// 404 for an object.
    pub fn not_found(resource: &GroupResource, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{resource} {name:?} not found")).about(resource, name)
    }

    /// 404 for a path under a known API group version.
    pub fn no_resource() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource").generic()
    }

    /// 409 for a create.
    pub fn already_exists(resource: &GroupResource, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{resource} {name:?} already exists")).about(resource, name)
    }

    /// 409 for a write.
    pub fn conflict(resource: &GroupResource, name: &str, why: &str) -> Self {
        Self::new(409, "Conflict", format!("Operation cannot be fulfilled on {resource} {name:?}: {why}"))
            .about(resource, name)
    }

    /// 409 for a write against a version that is no longer the current one.
    pub fn modified(resource: &GroupResource, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 409 for a server-side apply over other managers' fields.
    pub fn apply_conflict(conflict: &crate::apply::Conflict) -> Self {
        let mut error = Self::new(409, "Conflict", conflict.to_string());
        error.causes = conflict
            .conflicts
            .iter()
            .map(|c| Cause {
                reason: "FieldManagerConflict".into(),
                message: format!("conflict with {}", c.manager),
                field: c.field.clone(),
            })
            .collect();
        error
    }

    /// 422 with the fields that are wrong.
    pub fn invalid(kind: &GroupKind, name: &str, causes: Vec<Cause>) -> Self {
        let mut texts: Vec<String> = Vec::new();
        for cause in &causes {
            let text = format!("{}: {}", cause.field, cause.message);
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let all = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let mut error = Self::new(422, "Invalid", format!("{kind} {name:?} is invalid: {all}"));
        error.subject.group = kind.group.as_str().into();
        error.subject.kind = kind.kind.as_str().into();
        error.subject.name = name.into();
        error.causes = causes;
        error
    }

    /// 422 for a patch that is well formed but does not apply. A real server keeps the reason to itself.
    pub fn rejected() -> Self {
        Self::new(422, "Invalid", "the server rejected our request due to an error in our request").generic()
    }

    /// 500 without a reason: what a real server answers where its own code did not expect the error.
    pub fn unexpected(message: impl Into<String>) -> Self {
        Self::new(500, "", message)
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 403.
    pub fn forbidden(resource: &GroupResource, name: &str, why: &str) -> Self {
        Self::new(403, "Forbidden", format!("{resource} {name:?} is forbidden: {why}")).about(resource, name)
    }

    /// 403 for a create in a namespace that is going away.
    pub fn namespace_terminating(resource: &GroupResource, name: &str, namespace: &str) -> Self {
        let why =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        Self::forbidden(resource, name, &why).cause(Cause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".into(),
        })
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
            .generic()
    }

    /// 405 for a create of a custom resource whose definition is being deleted.
    pub fn definition_terminating() -> Self {
        Self::new(
            405,
            "MethodNotAllowed",
            "create not allowed while custom resource definition is terminating",
        )
    }

    /// 501 for what a real API server would do and this one cannot.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(501, "NotImplemented", message)
    }

    /// 500, as a real API server answers it, for a create that names a version.
    pub fn version_on_create() -> Self {
        Self::unexpected("resourceVersion should not be set on objects to be created")
    }

    /// 406.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let accepted = accepted.join(", ");
        Self::new(406, "NotAcceptable", format!("only the following media types are accepted: {accepted}"))
    }

    /// 406 for a media type that nothing is served in, said by a server's router.
    pub fn no_such_media(available: &str) -> Self {
        let message = format!("406: Not Acceptable\n\nAvailable representations: {available}");
        Self::new(406, "NotAcceptable", message).generic()
    }

    /// 406 for an object that the form asked for does not fit.
    pub fn not_this_form(why: String) -> Self {
        Self::new(406, "NotAcceptable", why)
    }

    /// 410 for a watch or list from before the history.
    pub fn expired(e: Expired) -> Self {
        Self::new(410, "Expired", e.to_string())
    }

    /// 410 for a list page whose version is gone.
    pub fn expired_continue() -> Self {
        Self::new(
            410,
            "Expired",
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.",
        )
    }

    /// 410 for a watcher that was too slow.
    pub fn lagging() -> Self {
        Self::new(410, "Expired", "the watcher was too slow and missed changes: list again")
    }

    /// 504 for a list at a version that does not exist yet.
    pub fn version_too_large(asked: u64, current: u64) -> Self {
        let mut error = Self::new(
            504,
            "Timeout",
            format!("Timeout: Too large resource version: {asked}, current: {current}"),
        )
        .cause(Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            field: String::new(),
        });
        error.retry_after_s = 1;
        error
    }

    /// 413.
    pub fn too_large(limit_bytes: usize) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit_bytes}"))
    }

    /// 415.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        Self::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                accepted.join(", ")
            ),
        )
    }

    /// 415 for a patch of a type that nothing takes, said by a server's router.
    pub fn not_consumed() -> Self {
        Self::new(415, "UnsupportedMediaType", "415: Unsupported Media Type").generic()
    }

    /// 429 for an eviction that a disruption budget does not allow.
    pub fn too_many_requests(message: &str, cause: Cause) -> Self {
        Self::new(429, "TooManyRequests", message).cause(cause)
    }

    /// 500.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {message}"))
    }

    /// The `Status` object.
    pub fn to_json(&self) -> Value {
        let mut details = Map::new();
        for (field, value) in
            [("name", &self.subject.name), ("group", &self.subject.group), ("kind", &self.subject.kind)]
        {
            if !value.is_empty() {
                details.insert(field.into(), value.as_str().into());
            }
        }
        if !self.causes.is_empty() {
            details.insert("causes".into(), self.causes.iter().map(Cause::to_json).collect());
        }
        if self.retry_after_s > 0 {
            details.insert("retryAfterSeconds".into(), self.retry_after_s.into());
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.into();
        }
        if !details.is_empty() || self.generic {
            status["details"] = Value::Object(details);
        }
        status
    }
}

/// The `Status` of a deletion that is done.
pub(crate) fn deleted(resource: &GroupResource, name: &str, uid: &str) -> Value {
    let mut details = Map::new();
    details.insert("name".into(), name.into());
    if !resource.group.is_empty() {
        details.insert("group".into(), resource.group.clone().into());
    }
    details.insert("kind".into(), resource.resource.clone().into());
    details.insert("uid".into(), uid.into());
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}
