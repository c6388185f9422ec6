//! Checks of the kinds that make pods, with the API server's own words
//! (`k8s.io/kubernetes/pkg/apis/{apps,batch}/validation`).

use serde_json::{Map, Value, json};

use super::{immutable, pod_spec};
use crate::server::status::Cause;

const RESTART_POLICY: &str = "spec.template.spec.restartPolicy";
/// Fields of a stateful set's spec that may change.
const STATEFUL_SET_MUTABLE: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];
/// Fields of a job's spec that may not.
const JOB_IMMUTABLE: &[&str] = &[
    "selector",
    "template",
    "completionMode",
    "podFailurePolicy",
    "backoffLimitPerIndex",
    "managedBy",
    "successPolicy",
];

/// Checks a Deployment, ReplicaSet, StatefulSet or DaemonSet.
pub(super) fn workload(kind: &str, new: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let spec = &new["spec"];
    if spec["replicas"].as_i64().is_some_and(|n| n < 0) {
        causes.push(Cause::invalid("spec.replicas", &spec["replicas"], "must be greater than or equal to 0"));
    }
    let selector = &spec["selector"];
    let empty = |field: &str| {
        selector[field].as_object().is_none_or(Map::is_empty)
            && selector[field].as_array().is_none_or(Vec::is_empty)
    };
    if selector.is_object() && empty("matchLabels") && empty("matchExpressions") {
        let kind = match kind {
            "StatefulSet" => "statefulset",
            "DaemonSet" => "daemonset",
            // A real server says so of replica sets too.
            _ => "deployment",
        };
        let why = format!("empty selector is invalid for {kind}");
        causes.push(Cause::invalid("spec.selector", selector, &why));
    } else if let Ok(labels) = crate::selector::Labels::from_label_selector(selector)
        && selector.is_object()
        && !labels.matches(&spec["template"])
    {
        causes.push(Cause::invalid(
            "spec.template.metadata.labels",
            &spec["template"]["metadata"]["labels"],
            "`selector` does not match template `labels`",
        ));
    }
    let mut pods = spec["template"]["spec"].clone();
    // A stateful set's claims are volumes of its pods.
    if let Some(claims) =
        spec["volumeClaimTemplates"].as_array().filter(|_| kind == "StatefulSet" && pods.is_object())
    {
        let claims = claims.iter().map(|claim| json!({"name": claim["metadata"]["name"]}));
        let volumes = pods["volumes"].as_array().cloned().unwrap_or_default();
        pods["volumes"] = volumes.into_iter().chain(claims).collect();
    }
    pod_spec(&pods, "spec.template.spec", causes);
    let policy = &spec["template"]["spec"]["restartPolicy"];
    if policy == "OnFailure" || policy == "Never" {
        causes.push(Cause::not_supported(RESTART_POLICY, policy, &["Always"]));
    }
    match (kind, old) {
        ("StatefulSet", Some(old)) => {
            let fixed = |spec: &Value| {
                let mut fields = spec.as_object().cloned().unwrap_or_default();
                fields.retain(|field, _| !STATEFUL_SET_MUTABLE.contains(&field.as_str()));
                fields
            };
            if fixed(spec) != fixed(&old["spec"]) {
                causes.push(Cause::forbidden(
                    "spec",
                    "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
                     'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
                ));
            }
        }
        (_, Some(old)) => immutable(spec, &old["spec"], "spec.", &["selector"], causes),
        (_, None) => {}
    }
}

/// Checks a Job.
pub(super) fn job(new: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let spec = &new["spec"];
    for field in ["parallelism", "completions", "backoffLimit", "activeDeadlineSeconds"] {
        if spec[field].as_i64().is_some_and(|n| n < 0) {
            let why = "must be greater than or equal to 0";
            causes.push(Cause::invalid(format!("spec.{field}"), &spec[field], why));
        }
    }
    job_template(&spec["template"], "spec.template.spec", causes);
    let Some(old) = old else { return };
    if spec["selector"].is_null() {
        causes.push(Cause::required("spec.selector", ""));
    }
    let old = &old["spec"];
    if spec["completionMode"] != "Indexed" {
        immutable(spec, old, "spec.", &["completions"], causes);
    } else if spec["completions"] != old["completions"] && spec["completions"] != spec["parallelism"] {
        causes.push(Cause::invalid(
            "spec.completions",
            &spec["completions"],
            "can only be modified in tandem with spec.parallelism",
        ));
    }
    immutable(spec, old, "spec.", JOB_IMMUTABLE, causes);
}

/// Checks a CronJob.
pub(super) fn cron_job(new: &Value, causes: &mut Vec<Cause>) {
    job_template(
        &new["spec"]["jobTemplate"]["spec"]["template"],
        "spec.jobTemplate.spec.template.spec",
        causes,
    );
}

fn job_template(template: &Value, at: &str, causes: &mut Vec<Cause>) {
    let spec = &template["spec"];
    pod_spec(spec, at, causes);
    // The policy of pods that nobody chose one for restarts for ever.
    if spec.is_object() && (spec["restartPolicy"] == "Always" || spec["restartPolicy"].is_null()) {
        let why = "valid values: \"OnFailure\", \"Never\"";
        causes.push(Cause::required(format!("{at}.restartPolicy"), why));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::builtin::defaults;
    use crate::server::status::Cause;

    fn template(restart: &str) -> serde_json::Value {
        json!({"metadata": {"labels": {"a": "b"}},
            "spec": {"restartPolicy": restart, "containers": [{"name": "c", "image": "i"}]}})
    }

    fn check(kind: &str, new: &serde_json::Value, old: Option<&serde_json::Value>) -> Vec<String> {
        let (mut new, old) = (
            new.clone(),
            old.cloned().map(|mut old| {
                defaults::apply(kind, &mut old);
                old
            }),
        );
        defaults::apply(kind, &mut new);
        let text = |cause: Cause| format!("{}: {}", cause.field, cause.message);
        super::super::check(kind, &new, old.as_ref()).into_iter().map(text).collect()
    }

    #[test]
    fn the_claims_of_a_stateful_set_are_volumes_of_its_pods() {
        let unknown = |kind: &str, mount: &str| {
            let mut template = template("Always");
            template["spec"]["containers"][0]["volumeMounts"] = json!([{"name": mount, "mountPath": "/d"}]);
            let object = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "serviceName": "a",
                "volumeClaimTemplates": [{"metadata": {"name": "data"}}], "template": template}});
            check(kind, &object, None).iter().any(|cause| cause.contains("volumeMounts[0].name"))
        };
        assert!(!unknown("StatefulSet", "data"));
        assert!(unknown("StatefulSet", "other") && unknown("Deployment", "data"));
    }

    #[test]
    fn stateful_sets_change_only_what_may_change() {
        let set = json!({"spec": {"serviceName": "s", "selector": {"matchLabels": {"a": "b"}}, "template": template("Always")}});
        assert_eq!(check("StatefulSet", &set, Some(&set)), [""; 0]);
        let mut other = set.clone();
        other["spec"]["replicas"] = 4.into();
        assert_eq!(check("StatefulSet", &other, Some(&set)), [""; 0]);
        other["spec"]["serviceName"] = "t".into();
        let said = check("StatefulSet", &other, Some(&set));
        assert!(said[0].starts_with("spec: Forbidden: updates to statefulset spec"), "{said:?}");
    }

    #[test]
    fn restart_policies_fit_the_kind() {
        let set = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template("Never")}});
        assert_eq!(
            check("DaemonSet", &set, None),
            [r#"spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always""#]
        );
        let job = json!({"spec": {"template": template("Always")}});
        assert_eq!(
            check("Job", &job, None),
            [r#"spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never""#]
        );
        let cron = json!({"spec": {"jobTemplate": {"spec": {"template": template("Never")}}}});
        assert_eq!(check("CronJob", &cron, None), [""; 0]);
    }

    #[test]
    fn a_job_keeps_its_template() {
        let job = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template("Never")}});
        let mut other = job.clone();
        other["spec"]["parallelism"] = 2.into();
        other["spec"]["completions"] = 1.into();
        assert_eq!(check("Job", &other, Some(&job)), [""; 0]);
        other["spec"]["template"]["spec"]["containers"][0]["image"] = "j".into();
        let said = check("Job", &other, Some(&job));
        assert!(said.len() == 1 && said[0].ends_with("field is immutable"), "{said:?}");
    }

    #[test]
    fn claims_and_classes_keep_what_they_are() {
        let claim = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        let mut more = claim.clone();
        more["spec"]["resources"]["requests"]["storage"] = "2Gi".into();
        more["spec"]["volumeName"] = "v".into();
        assert_eq!(check("PersistentVolumeClaim", &more, Some(&claim)), [""; 0]);
        more["spec"]["accessModes"] = json!(["ReadWriteMany"]);
        assert_eq!(check("PersistentVolumeClaim", &more, Some(&claim)).len(), 1);
        let class = |value: i64| json!({"value": value});
        assert_eq!(
            check("PriorityClass", &class(2), Some(&class(1))),
            ["value: Forbidden: may not be changed in an update."]
        );
    }
}
