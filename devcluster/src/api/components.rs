//! `componentstatuses`: what a cluster is made of. Here it is all one process, which answers, so all of it is well.

use axum::response::Response;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::read::Showing;
use super::request::Query;
use super::{Cluster, add_warning, answer};
use crate::resources::Resource;
use crate::selector::Labels;
use crate::server::status::ApiError;
use crate::store::GroupResource;

const DEPRECATED: &str = "v1 ComponentStatus is deprecated in v1.19+";
/// The parts that a server knows.
const NAMES: [&str; 3] = ["scheduler", "controller-manager", "etcd-0"];

fn component(name: &str) -> Value {
    json!({
        "kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": name},
        "conditions": [{"type": "Healthy", "status": "True", "message": "ok"}],
    })
}

impl Cluster {
    /// One part, or all of them where no name is given.
    ///
    /// # Errors
    /// 404 for a part that there is not, 400 for a selector that does not parse.
    pub(super) fn components(
        &self,
        resource: &Resource,
        name: &str,
        showing: Showing,
        query: &Query,
        now: Timestamp,
    ) -> Result<Response, ApiError> {
        let mut response = if name.is_empty() {
            let labels = Labels::parse(query.get("labelSelector").unwrap_or_default())
                .map_err(|e| ApiError::bad_request(e.to_string()))?;
            let all = NAMES.iter().map(|name| component(name)).filter(|c| labels.matches(c)).collect();
            answer(200, showing.many(resource, all, json!({}), now), &[])
        } else if NAMES.contains(&name) {
            answer(200, showing.one(resource, component(name), now), &[])
        } else {
            let singular = GroupResource::new("", &resource.singular);
            return Err(ApiError::not_found(&singular, name).warned(&[DEPRECATED.to_owned()]));
        };
        add_warning(&mut response, DEPRECATED);
        Ok(response)
    }
}
