//! Job and CronJob.

use std::collections::BTreeSet;

use serde_json::Value;

use super::field::{At, Faults, IMMUTABLE, entries, in_order, is_empty, items, same, text};
use super::{names, pod, selectors};

/// The most rules of a failure policy, patterns of a rule and codes of a pattern.
const MAX_RULES: usize = 20;
const MAX_PATTERNS: usize = 20;
const MAX_CODES: usize = 255;
/// The most pods at once of a job whose pods are numbered.
const MAX_PARALLEL: i64 = 100_000;
/// The longest name of who manages a job.
const MAX_MANAGER: usize = 63;
/// The longest name of a cron job: its jobs' names are eleven letters longer.
const MAX_CRON_NAME: usize = 52;
/// Labels that the server gives a job's pods, with the field of the job's metadata that each holds.
const GENERATED: &[(&str, &str)] = &[
    ("controller-uid", "uid"),
    ("job-name", "name"),
    ("batch.kubernetes.io/controller-uid", "uid"),
    ("batch.kubernetes.io/job-name", "name"),
];

/// Checks a new Job.
pub(super) fn created(job: &Value, faults: &mut Faults) {
    let (spec, at) = (&job["spec"], At::root("spec"));
    generated_selector(job, faults);
    whole_spec(spec, &at, faults);
    let completions = spec["completions"].as_i64().unwrap_or(0);
    if spec["completionMode"] == "Indexed" && completions > 0 {
        let name = text(&job["metadata"]["name"]);
        let last = format!("{name}-{}", completions - 1);
        if !names::dns_label(&last).is_empty() {
            let why = format!("will not able to create pod with invalid DNS label: {last}");
            faults.invalid(&At::root("metadata").child("name"), name, &why);
        }
    }
}

/// Checks a changed Job.
pub(super) fn updated(new: &Value, old: &Value, faults: &mut Faults) {
    created(new, faults);
    let (spec, before, at) = (&new["spec"], &old["spec"], At::root("spec"));
    whole_spec(spec, &at, faults);
    let (wanted, had) = (&spec["completions"], &before["completions"]);
    if spec["completionMode"] != "Indexed" {
        faults.unchanged(&at, spec, before, &["completions"]);
    } else if wanted != had && wanted != &spec["parallelism"] {
        let why = "can only be modified in tandem with spec.parallelism";
        faults.invalid(&at.child("completions"), wanted.clone(), why);
    }
    if !same(&spec["selector"], &before["selector"]) {
        let shown = selectors::shown(&spec["selector"]);
        faults.invalid_as(&at.child("selector"), &shown, IMMUTABLE);
    }
    let mut template = before["template"].clone();
    // A job that is held back and has not started may still be sent elsewhere.
    if before["suspend"] == true && old["status"]["startTime"].is_null() {
        for (part, fields) in [
            ("spec", &["nodeSelector", "tolerations", "affinity", "schedulingGates"][..]),
            ("metadata", &["labels", "annotations"]),
        ] {
            for field in fields {
                match spec["template"][part].get(*field) {
                    Some(value) => template[part][*field] = value.clone(),
                    None => {
                        template.get_mut(part).and_then(Value::as_object_mut).map(|p| p.remove(*field));
                    }
                }
            }
        }
    }
    if !same(&spec["template"], &template) {
        faults.invalid(&at.child("template"), spec["template"].clone(), IMMUTABLE);
    }
    let fields = ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"];
    faults.unchanged(&at, spec, before, &fields);
}

/// A job that does not bring its own selector has the server's, and its template the labels for it.
fn generated_selector(job: &Value, faults: &mut Faults) {
    let (spec, meta) = (&job["spec"], &job["metadata"]);
    let selector = &spec["selector"];
    if spec["manualSelector"] == true || selector.is_null() {
        return;
    }
    let at = At::root("spec").child("template").child("metadata");
    let labels = &spec["template"]["metadata"]["labels"];
    for (label, field) in GENERATED {
        let wanted = text(&meta[*field]);
        let at = at.child("labels");
        match labels[*label].as_str() {
            None => faults.required(&at.key(label), &format!("must be '{wanted}'")),
            Some(given) if given != wanted => {
                let shown = Value::from_iter(entries(labels).map(|(k, v)| (k.clone(), v.clone())));
                faults.invalid(&at.key(label), shown, &format!("must be '{wanted}'"));
            }
            Some(_) => {}
        }
    }
    let own: Value =
        GENERATED.iter().map(|(label, field)| ((*label).to_owned(), meta[*field].clone())).collect();
    let whole = serde_json::json!({"metadata": {"labels": own}});
    if selectors::readable(selector)
        && !selectors::selects_all(selector)
        && !selectors::selects(selector, &whole)
    {
        let at = At::root("spec").child("selector");
        faults.invalid_as(&at, &selectors::shown(selector), "`selector` not auto-generated");
    }
}

fn whole_spec(spec: &Value, at: &At, faults: &mut Faults) {
    self::spec(spec, at, faults);
    let selector = &spec["selector"];
    if selector.is_null() {
        faults.required(&at.child("selector"), "");
    } else {
        selectors::labels(selector, &at.child("selector"), faults);
    }
    let template = &spec["template"];
    let all = selector.is_object() && selectors::selects_all(selector);
    if selectors::readable(selector) && !all && !selectors::selects(selector, template) {
        let at = at.child("template").child("metadata").child("labels");
        let labels = template["metadata"]["labels"].clone();
        faults.invalid(&at, labels, "`selector` does not match template `labels`");
    }
}

/// Checks the spec of a job, but for its selector.
fn spec(spec: &Value, at: &At, faults: &mut Faults) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        faults.not_negative(&at.child(field), &spec[field]);
    }
    let number = |field: &str| spec[field].as_i64();
    let indexed = spec["completionMode"] == "Indexed";
    if number("maxFailedIndexes").is_some() && number("backoffLimitPerIndex").is_none() {
        faults.required(&at.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if let Some(manager) = spec["managedBy"].as_str() {
        prefixed_path(manager, &at.child("managedBy"), faults);
        if manager.len() > MAX_MANAGER {
            faults.too_long(&at.child("managedBy"), MAX_MANAGER);
        }
    }
    faults.one_of(&at.child("completionMode"), &spec["completionMode"], &["NonIndexed", "Indexed"]);
    if indexed {
        if number("completions").is_none() {
            faults.required(&at.child("completions"), "when completion mode is Indexed");
        }
        if let Some(parallel) = number("parallelism").filter(|n| *n > MAX_PARALLEL) {
            let why = format!("must be less than or equal to {MAX_PARALLEL} when completion mode is Indexed");
            faults.invalid(&at.child("parallelism"), parallel, &why);
        }
        if let (Some(all), Some(failed)) = (number("completions"), number("maxFailedIndexes"))
            && failed > all
        {
            let why = "must be less than or equal to completions";
            faults.invalid(&at.child("maxFailedIndexes"), failed, why);
        }
    } else if matches!(text(&spec["completionMode"]), "" | "NonIndexed") {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if let Some(given) = number(field) {
                faults.invalid(&at.child(field), given, "requires indexed completion mode");
            }
        }
    }
    if spec["podFailurePolicy"].is_object() {
        failure_policy(spec, &at.child("podFailurePolicy"), faults);
    }
    success_policy(spec, indexed, &at.child("successPolicy"), faults);
    let replaced: &[&str] =
        if spec["podFailurePolicy"].is_object() { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    faults.one_of(&at.child("podReplacementPolicy"), &spec["podReplacementPolicy"], replaced);
    let template = &spec["template"];
    pod::template(template, &at.child("template"), faults);
    let policy_at = at.child("template").child("spec").child("restartPolicy");
    match text(&template["spec"]["restartPolicy"]) {
        "" | "Always" => faults.required(&policy_at, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if spec["podFailurePolicy"].is_object() => {
            let why = "only \"Never\" is supported when podFailurePolicy is specified";
            faults.invalid(&policy_at, "OnFailure", why);
        }
        "OnFailure" | "Never" => {}
        other => faults.not_supported(&policy_at, other, &["OnFailure", "Never"]),
    }
}

/// Checks a name like `example.com/name`.
pub(super) fn prefixed_path(path: &str, at: &At, faults: &mut Faults) {
    if path.is_empty() {
        return faults.required(at, "");
    }
    let (host, rest) = match path.split_once('/') {
        Some((host, rest)) if !host.is_empty() && !rest.is_empty() => (host, rest),
        _ => return faults.invalid(at, path, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
    };
    faults.invalid_for(at, host, names::dns_subdomain(host));
    let good = |c: char| c.is_ascii_alphanumeric() || "/-._~%!$&'()*+,;=:".contains(c);
    if !rest.chars().all(good) {
        let why = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
        faults.invalid(at, rest, why);
    }
}

fn failure_policy(spec: &Value, at: &At, faults: &mut Faults) {
    let at = at.child("rules");
    let rules = &spec["podFailurePolicy"]["rules"];
    let count = items(rules).count();
    if count > MAX_RULES {
        faults.too_many(&at, count, MAX_RULES);
    }
    let containers: BTreeSet<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| items(&spec["template"]["spec"][*list]))
        .map(|c| text(&c["name"]))
        .collect();
    for (i, rule) in items(rules).enumerate() {
        let at = at.index(i);
        let all = ["Count", "FailIndex", "FailJob", "Ignore"];
        match text(&rule["action"]) {
            "" => faults.required(&at.child("action"), &format!("valid values: {}", listed(&all))),
            "FailIndex" if spec["backoffLimitPerIndex"].is_null() => {
                let why = "requires the backoffLimitPerIndex to be set";
                faults.invalid(&at.child("action"), "FailIndex", why);
            }
            action if !all.contains(&action) => faults.not_supported(&at.child("action"), action, &all),
            _ => {}
        }
        let (codes, conditions) = (&rule["onExitCodes"], &rule["onPodConditions"]);
        if codes.is_object() {
            exit_codes(codes, &containers, &at.child("onExitCodes"), faults);
        }
        let patterns = items(conditions).count();
        if patterns > MAX_PATTERNS {
            faults.too_many(&at.child("onPodConditions"), patterns, MAX_PATTERNS);
        }
        for (c, pattern) in items(conditions).enumerate() {
            let at = at.child("onPodConditions").index(c);
            let kind = text(&pattern["type"]);
            faults.invalid_for(&at.child("type"), kind, names::qualified_name(kind));
            let all = ["False", "True", "Unknown"];
            match text(&pattern["status"]) {
                "" => faults.required(&at.child("status"), &format!("valid values: {}", listed(&all))),
                status if !all.contains(&status) => {
                    faults.not_supported(&at.child("status"), status, &all);
                }
                _ => {}
            }
        }
        match (codes.is_object(), patterns > 0) {
            (true, true) => {
                faults.wrong(&at, "specifying both OnExitCodes and OnPodConditions is not supported");
            }
            (false, false) => {
                faults.wrong(&at, "specifying one of OnExitCodes and OnPodConditions is required");
            }
            _ => {}
        }
    }
}

/// A list as Go's `%q` prints it.
fn listed(values: &[&str]) -> String {
    format!("[{}]", values.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(" "))
}

fn exit_codes(codes: &Value, containers: &BTreeSet<&str>, at: &At, faults: &mut Faults) {
    let operator = text(&codes["operator"]);
    match operator {
        "" => faults.required(&at.child("operator"), "valid values: [\"In\" \"NotIn\"]"),
        "In" | "NotIn" => {}
        other => faults.not_supported(&at.child("operator"), other, &["In", "NotIn"]),
    }
    if let Some(name) = codes["containerName"].as_str().filter(|name| !containers.contains(name)) {
        let why = "must be one of the container or initContainer names in the pod template";
        faults.invalid(&at.child("containerName"), name, why);
    }
    let (values, at) = (&codes["values"], at.child("values"));
    let count = items(values).count();
    if count == 0 {
        faults.invalid(&at, values.clone(), "at least one value is required");
    } else if count > MAX_CODES {
        faults.too_many(&at, count, MAX_CODES);
    }
    let (mut seen, mut before, mut ordered) = (BTreeSet::new(), i64::MIN, true);
    for (i, code) in items(values).enumerate() {
        let code = code.as_i64().unwrap_or(0);
        if operator == "In" && code == 0 {
            faults.invalid(&at.index(i), code, "must not be 0 for the In operator");
        }
        if !seen.insert(code) {
            faults.duplicate(&at.index(i), code);
        }
        ordered &= before <= code;
        before = code;
    }
    if !ordered {
        faults.invalid(&at, values.clone(), "must be ordered");
    }
}

fn success_policy(spec: &Value, indexed: bool, at: &At, faults: &mut Faults) {
    let policy = &spec["successPolicy"];
    if !policy.is_object() {
        return;
    }
    if !indexed {
        let shown = in_order(policy, &["rules"]);
        return faults.invalid_as(at, &shown, "requires indexed completion mode");
    }
    let (rules, at) = (&policy["rules"], at.child("rules"));
    let count = items(rules).count();
    if count == 0 {
        let why = "at least one rules must be specified when the successPolicy is specified";
        faults.required(&at, why);
    }
    if count > MAX_RULES {
        faults.too_many(&at, count, MAX_RULES);
    }
    let all = spec["completions"].as_i64().unwrap_or(0);
    for (i, rule) in items(rules).enumerate() {
        let at = at.index(i);
        let count = &rule["succeededCount"];
        if count.is_null() && rule["succeededIndexes"].is_null() {
            let why = "at least one of succeededCount or succeededIndexes must be specified";
            faults.required(&at, why);
        }
        faults.not_negative(&at.child("succeededCount"), count);
        if count.as_i64().is_some_and(|n| n > all) {
            let why = format!("must be less than or equal to {all} (the number of specified completions)");
            faults.invalid(&at.child("succeededCount"), count.clone(), &why);
        }
    }
}

/// Checks a CronJob.
pub(super) fn cron_job(new: &Value, old: Option<&Value>, faults: &mut Faults) {
    let (spec, at) = (&new["spec"], At::root("spec"));
    schedule(spec, old, &at.child("schedule"), faults);
    faults.not_negative(&at.child("startingDeadlineSeconds"), &spec["startingDeadlineSeconds"]);
    if old.is_none_or(|old| old["spec"]["timeZone"] != spec["timeZone"]) {
        time_zone(&spec["timeZone"], &at.child("timeZone"), faults);
    }
    let policies = ["Allow", "Forbid", "Replace"];
    faults.one_of(&at.child("concurrencyPolicy"), &spec["concurrencyPolicy"], &policies);
    let (job, job_at) = (&spec["jobTemplate"]["spec"], at.child("jobTemplate").child("spec"));
    self::spec(job, &job_at, faults);
    if !job["selector"].is_null() {
        let shown = selectors::shown(&job["selector"]);
        faults.invalid_as(&job_at.child("selector"), &shown, "`selector` will be auto-generated");
    }
    if job["manualSelector"] == true {
        faults.not_supported(&job_at.child("manualSelector"), true, &["nil", "false"]);
    }
    for field in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        faults.not_negative(&at.child(field), &spec[field]);
    }
    let name = text(&new["metadata"]["name"]);
    if old.is_none() && name.len() > MAX_CRON_NAME {
        let why = format!("must be no more than {MAX_CRON_NAME} characters");
        faults.invalid(&At::root("metadata").child("name"), name, &why);
    }
}

fn schedule(spec: &Value, old: Option<&Value>, at: &At, faults: &mut Faults) {
    let schedule = text(&spec["schedule"]);
    if schedule.is_empty() {
        return faults.required(at, "");
    }
    if let Err(why) = super::cron::parse(schedule) {
        faults.invalid(at, schedule, &why);
    }
    let zoned = schedule.contains("TZ");
    if old.is_some_and(|old| text(&old["spec"]["schedule"]).contains("TZ")) {
        if zoned && !spec["timeZone"].is_null() {
            faults.invalid(at, schedule, "cannot use both timeZone field and TZ or CRON_TZ in schedule");
        }
    } else if zoned {
        faults.invalid(at, schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
    }
}

fn time_zone(zone: &Value, at: &At, faults: &mut Faults) {
    let Some(zone) = zone.as_str() else { return };
    if zone.is_empty() {
        return faults.invalid(at, "", "timeZone must be nil or non-empty string");
    }
    let good = |part: &str| {
        (1..=14).contains(&part.len())
            && !part.starts_with('-')
            && part != "."
            && part != ".."
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-+".contains(c))
    };
    if !zone.split('/').all(good) || jiff::tz::TimeZone::get(zone).is_err() {
        if zone.eq_ignore_ascii_case("local") {
            let why = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
            return faults.invalid(at, zone, why);
        }
        faults.invalid(at, zone, &format!("unknown time zone {zone}"));
    }
}

/// Checks a Job's status.
pub(super) fn status(new: &Value, old: &Value, faults: &mut Faults) {
    let (status, at) = (&new["status"], At::root("status"));
    for field in ["active", "succeeded", "failed", "ready", "terminating"] {
        faults.not_negative(&at.child(field), &status[field]);
    }
    let is = |job: &Value, kind: &str| {
        items(&job["status"]["conditions"]).any(|c| c["type"] == kind && c["status"] == "True")
    };
    let count = |field: &str| status[field].as_i64().unwrap_or(0);
    let conditions = at.child("conditions");
    let (complete, failed) = (is(new, "Complete"), is(new, "Failed"));
    if complete && failed {
        faults.wrong(&conditions, "cannot set Complete=True and Failed=true conditions");
    }
    if complete && is(new, "FailureTarget") {
        faults.wrong(&conditions, "cannot set Complete=True and FailureTarget=true conditions");
    }
    if !status["completionTime"].is_null() && !complete {
        let time = status["completionTime"].clone();
        faults.invalid(
            &at.child("completionTime"),
            time,
            "cannot set completionTime when there is no Complete=True condition",
        );
    }
    if complete && status["completionTime"].is_null() {
        faults.required(&at.child("completionTime"), "completionTime is required for Complete jobs");
    }
    if (complete || failed) && count("active") > 0 {
        faults.invalid(&at.child("active"), count("active"), "active>0 is invalid for finished job");
    }
    if (complete || failed) && status["startTime"].is_null() && new["spec"]["suspend"] != true {
        faults.required(&at.child("startTime"), "startTime is required for finished job");
    }
    if count("ready") > count("active") {
        faults.invalid(&at.child("ready"), count("ready"), "cannot set more ready pods than active");
    }
    for kind in ["Failed", "Complete", "FailureTarget"] {
        if is(old, kind) && !is(new, kind) {
            let why = format!("cannot disable the terminal {kind}=True condition");
            faults.wrong(&conditions, &why);
        }
    }
    if !is_empty(&old["status"]["conditions"])
        && is(old, "SuccessCriteriaMet")
        && !is(new, "SuccessCriteriaMet")
    {
        faults.wrong(&conditions, "cannot disable the SuccessCriteriaMet=True condition");
    }
}
