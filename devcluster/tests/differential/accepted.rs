//! The differences that are accepted: each with the reason why nothing that speaks to a cluster notices.

use crate::compare::Difference;

/// An accepted difference. `*` in a name or path stands for any text.
#[derive(Debug)]
pub struct Accepted {
    /// Case.
    pub case: &'static str,
    /// Step.
    pub step: &'static str,
    /// Where in the answer.
    pub path: &'static str,
    /// Why neither kubectl, nor kube-rs, nor our own code notices.
    pub why: &'static str,
}

/// All of them.
pub const ACCEPTED: &[Accepted] = &[
    Accepted {
        case: "*",
        step: "*",
        path: "*/ca.crt",
        why: "this API speaks plain HTTP, so its bundle is empty",
    },
    Accepted {
        case: "*",
        step: "*",
        path: "*/columnDefinitions/*/description",
        why: "no client shows the descriptions of a table's columns",
    },
    Accepted {
        case: "openapi",
        step: "schemas of *",
        path: "/body/components/schemas/*.DeleteOptions/x-kubernetes-group-version-kind",
        why: "every version of every group, served or not, in which a type is registered that is the same in all",
    },
    Accepted {
        case: "openapi",
        step: "schemas of *",
        path: "/body/components/schemas/*.WatchEvent/x-kubernetes-group-version-kind",
        why: "every version of every group, served or not, in which a type is registered that is the same in all",
    },
    Accepted {
        case: "media",
        step: "protobuf, else json",
        path: "*",
        why: "who asks for protobuf takes JSON as well, and gets it",
    },
    Accepted {
        case: "complaints",
        step: "missing image, server-side",
        path: "/stderr/*",
        why: "the rest of a dump of Go's own structures, of which no program reads a line",
    },
    Accepted {
        case: "scale",
        step: "scale, bad",
        path: "/body/*",
        why: "the Scale that a broken patch made, shown as the server holds it, with a record of managers in it",
    },
    Accepted {
        case: "tables",
        step: "node, *",
        path: "/body/spec/taints",
        why: "a node that is ready is freed of its taint, by a controller that the real side here is without",
    },
    Accepted { case: "tables", step: "describe node", path: "/stdout/*", why: "the same taint" },
    Accepted {
        case: "minimal",
        step: "/apis/apiregistration.k8s.io/v1/apiservices is labelled",
        path: "/body/*",
        why: "no API is aggregated here, so no condition says whether one is available",
    },
    Accepted {
        case: "minimal",
        step: "events.k8s.io/v1/events is *",
        path: "/body/metadata/managedFields*",
        why: "a real server loses the record of an event's managers once it is written by its other group too",
    },
    Accepted {
        case: "discovery",
        step: "version",
        path: "/body/*",
        why: "another program, built otherwise; the minor version that clients read is the same",
    },
];

/// Differences by what they mean for the test.
#[derive(Debug)]
pub struct Sorted<'a> {
    /// Neither accepted nor known.
    pub unexpected: Vec<&'a Difference>,
    /// Where devcluster is known to fall short.
    pub known: usize,
    /// What [`ACCEPTED`] accepts and does not differ any more.
    pub unused: Vec<&'static Accepted>,
    /// What [`super::known`] lists and does not differ any more.
    pub mended: Vec<String>,
}

/// Sorts differences; `some_cases` is whether not all cases were played.
pub fn sort(differences: &[Difference], some_cases: bool) -> Sorted<'_> {
    let accepts = |a: &Accepted, d: &Difference| {
        matches(a.case, &d.case) && matches(a.step, &d.step) && matches(a.path, &d.path)
    };
    let all: Vec<(&str, &str)> = super::known::known().collect();
    let known = |d: &Difference| all.contains(&(d.case.as_str(), d.step.as_str()));
    let left: Vec<&Difference> =
        differences.iter().filter(|d| !ACCEPTED.iter().any(|a| accepts(a, d))).collect();
    let unused =
        ACCEPTED.iter().filter(|a| !some_cases && !differences.iter().any(|d| accepts(a, d))).collect();
    let differs = |case: &str, step: &str| left.iter().any(|d| d.case == case && d.step == step);
    let mended = all
        .iter()
        .filter(|(case, step)| !some_cases && !differs(case, step))
        .map(|(case, step)| format!("{case}: {step}"))
        .collect();
    let count = left.iter().filter(|d| known(d)).count();
    Sorted { unexpected: left.into_iter().filter(|d| !known(d)).collect(), known: count, unused, mended }
}

/// Whether a text fits a pattern in which `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|tail| {
            tail.char_indices().map(|(at, _)| at).chain([tail.len()]).any(|at| matches(rest, &tail[at..]))
        }),
    }
}

#[test]
fn patterns_fit_texts() {
    assert!(matches("*", "") && matches("a*c", "abc") && matches("/body/items/*/spec", "/body/items/3/spec"));
    assert!(!matches("a*c", "abd") && !matches("", "a") && !matches("ab", "a"));
}

#[test]
fn every_acceptance_has_a_reason() {
    assert!(ACCEPTED.iter().all(|a| !a.why.is_empty()));
}
