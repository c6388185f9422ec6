use rstest::rstest;
use serde_json::json;

use super::*;

#[rstest]
#[case("", true)]
#[case("a=1", true)]
#[case("a==1", true)]
#[case("a = 1", true)]
#[case("a=2", false)]
#[case("a!=1", false)]
#[case("z!=1", true)]
#[case("a", true)]
#[case("z", false)]
#[case("!z", true)]
#[case("!a", false)]
#[case("a in (1, 2)", true)]
#[case("a in (2)", false)]
#[case("a notin (1)", false)]
#[case("z notin (1)", true)]
#[case("a=1,x.dev/b=v", true)]
#[case("a=1,x.dev/b!=v", false)]
#[case("empty=", true)]
#[case("empty in (,x)", true)]
fn labels(#[case] text: &str, #[case] want: bool) {
    let object = json!({"metadata": {"labels": {"a": "1", "x.dev/b": "v", "empty": ""}}});
    assert_eq!(Labels::parse(text).unwrap().matches(&object), want);
}

#[rstest]
#[case("a=1,")]
#[case("=1")]
#[case("a in 1")]
#[case("a in (1")]
#[case("a is b")]
#[case("a=b c")]
#[case("-a=b")]
#[case("a/b/c=1")]
fn bad_labels(#[case] text: &str) {
    assert!(Labels::parse(text).is_err());
}

#[test]
fn selector_objects() {
    let selector = json!({"matchLabels": {"a": "1"}, "matchExpressions": [
        {"key": "b", "operator": "In", "values": ["x", "y"]}, {"key": "c", "operator": "DoesNotExist"}]});
    let selector = Labels::from_label_selector(&selector).unwrap();
    let with = |labels: Value| selector.matches(&json!({"metadata": {"labels": labels}}));
    assert!(with(json!({"a": "1", "b": "y"})));
    assert!(!with(json!({"a": "1", "b": "y", "c": ""})));
    assert!(!with(json!({"b": "y"})));
    assert!(
        Labels::from_label_selector(&json!({"matchExpressions": [{"key": "a", "operator": "Near"}]}))
            .is_err()
    );
}

#[rstest]
#[case("metadata.name=p", true)]
#[case("metadata.name==p", true)]
#[case("metadata.name!=p", false)]
#[case("spec.nodeName=", true)]
#[case("spec.nodeName!=", false)]
#[case("metadata.name=p,status.phase!=Failed", true)]
#[case(r"status.message=a\,b\=c", true)]
#[case("spec.unschedulable=true", true)]
fn fields(#[case] text: &str, #[case] want: bool) {
    let object = json!({"metadata": {"name": "p"}, "spec": {"unschedulable": true},
        "status": {"phase": "Running", "message": "a,b=c"}});
    assert_eq!(Fields::parse(text).unwrap().matches(&object), want);
}

#[test]
fn field_selectors_tell_what_they_ask() {
    let fields = Fields::parse("metadata.name=p,spec.nodeName!=n").unwrap();
    assert_eq!(fields.exact("metadata.name"), Some("p"));
    assert_eq!(fields.exact("spec.nodeName"), None);
    assert_eq!(fields.paths().collect::<Vec<_>>(), ["metadata.name", "spec.nodeName"]);
    assert!(Fields::parse("metadata.name").is_err());
    assert!(Fields::parse("=x").is_err());
}
