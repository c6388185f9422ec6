//! What names, labels, ports and the like must look like. Each check gives the reasons why a text is none of its kind, in a
//! server's own words; none if it is one.

/// Most characters of an RFC 1123 label.
const MAX_LABEL: usize = 63;
/// Most characters of an RFC 1123 subdomain.
const MAX_SUBDOMAIN: usize = 253;

fn shown(rule: &str, examples: &[&str], pattern: &str) -> String {
    match examples {
        [] => format!("{rule} (regex used for validation is '{pattern}')"),
        _ => {
            let examples = examples.iter().map(|e| format!("'{e}', ")).collect::<Vec<_>>().join(" or ");
            format!("{rule} (e.g. {examples}regex used for validation is '{pattern}')")
        }
    }
}

fn at_most(characters: usize) -> String {
    format!("must be no more than {characters} characters")
}

/// As newer rules say it.
fn at_most_bytes(bytes: usize) -> String {
    format!("must be no more than {bytes} bytes")
}

fn lower_or_digit(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

fn alphanumeric(c: char) -> bool {
    c.is_ascii_alphanumeric()
}

/// Whether all characters are allowed, and the first and last of the edges' kinds.
fn made_of(
    text: &str,
    first: fn(char) -> bool,
    last: fn(char) -> bool,
    inner: impl Fn(char) -> bool,
) -> bool {
    text.chars().next().is_some_and(first)
        && text.chars().next_back().is_some_and(last)
        && text.chars().all(inner)
}

fn is_label(text: &str) -> bool {
    made_of(text, lower_or_digit, lower_or_digit, |c| lower_or_digit(c) || c == '-')
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

/// An RFC 1123 label: `my-name`.
pub fn dns_label(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > MAX_LABEL {
        out.push(at_most(MAX_LABEL));
    }
    if !is_label(text) {
        out.push(if is_subdomain(text) {
            "must not contain dots".to_owned()
        } else {
            shown(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
                 end with an alphanumeric character",
                &["my-name", "123-abc"],
                "[a-z0-9]([-a-z0-9]*[a-z0-9])?",
            )
        });
    }
    out
}

/// An RFC 1123 subdomain: `example.com`.
pub fn dns_subdomain(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > MAX_SUBDOMAIN {
        out.push(at_most(MAX_SUBDOMAIN));
    }
    if !is_subdomain(text) {
        out.push(shown(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start \
             and end with an alphanumeric character",
            &["example.com"],
            "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
        ));
    }
    out
}

/// A subdomain whose first part may be `*`.
pub fn wildcard_subdomain(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > MAX_SUBDOMAIN {
        out.push(at_most(MAX_SUBDOMAIN));
    }
    if !text.strip_prefix("*.").is_some_and(is_subdomain) {
        out.push(shown(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of \
             lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            &["*.example.com"],
            "\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
        ));
    }
    out
}

/// A name of a search list of DNS: a subdomain with underscores.
pub fn search_domain(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > MAX_SUBDOMAIN {
        out.push(at_most(MAX_SUBDOMAIN));
    }
    let part = |part: &str| {
        let part = part.strip_prefix('_').unwrap_or(part);
        made_of(part, lower_or_digit, lower_or_digit, |c| lower_or_digit(c) || c == '-' || c == '_')
    };
    if !text.split('.').all(part) {
        out.push(shown(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must \
             start and end with an alphanumeric character",
            &["example.com"],
            "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*",
        ));
    }
    out
}

/// An RFC 1035 label: `abc-123`.
pub fn dns_1035_label(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > MAX_LABEL {
        out.push(at_most(MAX_LABEL));
    }
    let first = |c: char| c.is_ascii_lowercase();
    if !made_of(text, first, lower_or_digit, |c| lower_or_digit(c) || c == '-') {
        out.push(shown(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
             character, and end with an alphanumeric character",
            &["my-name", "abc-123"],
            "[a-z]([-a-z0-9]*[a-z0-9])?",
        ));
    }
    out
}

fn is_name_part(text: &str) -> bool {
    made_of(text, alphanumeric, alphanumeric, |c| alphanumeric(c) || matches!(c, '-' | '_' | '.'))
}

/// The key of a label or annotation, the name of a finalizer or condition: `name`, `example.com/name`.
pub fn qualified_name(text: &str) -> Vec<String> {
    let part = || {
        shown(
            "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            &["MyName", "my.name", "123-abc"],
            "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]",
        )
    };
    let mut out = Vec::new();
    let name = match text.split('/').collect::<Vec<_>>().as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                out.push("prefix part must be non-empty".to_owned());
            } else {
                out.extend(
                    dns_subdomain(prefix)
                        .into_iter()
                        .map(|why| format!("prefix part {}", why.replace("253 characters", "253 bytes"))),
                );
            }
            *name
        }
        _ => {
            out.push(format!(
                "a valid label key {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                part()
            ));
            return out;
        }
    };
    if name.is_empty() {
        out.push("name part must be non-empty".to_owned());
    } else if name.len() > MAX_LABEL {
        out.push(format!("name part {}", at_most_bytes(MAX_LABEL)));
    }
    if !is_name_part(name) {
        out.push(format!("name part {}", part()));
    }
    out
}

/// The value of a label.
pub fn label_value(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > MAX_LABEL {
        out.push(at_most_bytes(MAX_LABEL));
    }
    if !text.is_empty() && !is_name_part(text) {
        out.push(shown(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start \
             and end with an alphanumeric character",
            &["MyValue", "my_value", "12345"],
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
        ));
    }
    out
}

/// A name that is a segment of a path: those of RBAC's kinds.
pub fn path_segment(text: &str) -> Vec<String> {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'")];
    }
    ['/', '%'].iter().filter(|c| text.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// The name of a container's port.
pub fn port_name(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > 15 {
        out.push(at_most(15));
    }
    if text.is_empty() || !text.chars().all(|c| lower_or_digit(c) || c == '-') {
        out.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.chars().any(|c| c.is_ascii_lowercase()) {
        out.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        out.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        out.push("must not begin or end with a hyphen".to_owned());
    }
    out
}

/// The name of an environment variable.
pub fn variable(text: &str) -> Vec<String> {
    if text.is_empty() {
        return vec!["environment variable name must be non-empty".to_owned()];
    }
    let printable = text.chars().all(|c| (' '..='~').contains(&c) && c != '=');
    let why =
        "a valid environment variable name must consist only of printable ASCII characters other than '='";
    if printable { Vec::new() } else { vec![why.to_owned()] }
}

/// A key of a ConfigMap or Secret.
pub fn data_key(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > MAX_SUBDOMAIN {
        out.push(at_most(MAX_SUBDOMAIN));
    }
    if text.is_empty() || !text.chars().all(|c| alphanumeric(c) || matches!(c, '-' | '_' | '.')) {
        out.push(shown(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            &["key.name", "KEY_NAME", "key-name"],
            "[-._a-zA-Z0-9]+",
        ));
    }
    match text {
        "." | ".." => out.push(format!("must not be '{text}'")),
        _ if text.starts_with("..") => out.push("must not start with '..'".to_owned()),
        _ => {}
    }
    out
}

/// The name of an HTTP header.
pub fn header(text: &str) -> Vec<String> {
    if !text.is_empty() && text.chars().all(|c| alphanumeric(c) || c == '-') {
        return Vec::new();
    }
    let rule = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![shown(rule, &["X-Header-Name"], "[-A-Za-z0-9]+")]
}

/// A share: `25%`.
pub fn percent(text: &str) -> Vec<String> {
    let digits = text.strip_suffix('%').unwrap_or_default();
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Vec::new();
    }
    let rule = "a valid percent string must be a numeric string followed by an ending '%'";
    vec![shown(rule, &["1%", "93%"], "[0-9]+%")]
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(dns_label("a-b"), &[])]
    #[case(dns_label("a.b"), &["must not contain dots"])]
    #[case(dns_label("A"), &["a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"])]
    #[case(dns_subdomain("a.b-c.1"), &[])]
    #[case(dns_subdomain(""), &["a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"])]
    #[case(qualified_name("a.b/C_d"), &[])]
    #[case(qualified_name("/x"), &["prefix part must be non-empty"])]
    #[case(label_value(""), &[])]
    #[case(label_value("a"), &[])]
    #[case(path_segment("system:node"), &[])]
    #[case(path_segment("a/%"), &["may not contain '/'", "may not contain '%'"])]
    #[case(port_name("http"), &[])]
    #[case(port_name("80"), &["must contain at least one letter (a-z)"])]
    #[case(port_name("-a--b"), &["must not contain consecutive hyphens", "must not begin or end with a hyphen"])]
    #[case(variable("a b-1"), &[])]
    #[case(variable("a=b"), &["a valid environment variable name must consist only of printable ASCII characters other than '='"])]
    #[case(data_key("tls.crt"), &[])]
    #[case(data_key("..x"), &["must not start with '..'"])]
    #[case(percent("150%"), &[])]
    #[case(percent("5x"), &["a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"])]
    fn texts_are_of_their_kind_or_a_reason_is_given(#[case] found: Vec<String>, #[case] wanted: &[&str]) {
        assert_eq!(found, wanted);
    }

    #[test]
    fn long_names_say_how_long_they_may_be() {
        assert_eq!(dns_label(&"a".repeat(64)), ["must be no more than 63 characters"]);
        assert_eq!(dns_subdomain(&"a".repeat(254)), ["must be no more than 253 characters"]);
        assert_eq!(qualified_name(&"a".repeat(64)), ["name part must be no more than 63 bytes"]);
        assert_eq!(label_value(&"a".repeat(64)), ["must be no more than 63 bytes"]);
    }
}
