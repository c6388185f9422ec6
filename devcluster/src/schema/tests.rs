use rstest::rstest;
use serde_json::json;

use super::*;

fn compile(properties: Value) -> CompiledSchema {
    CompiledSchema::compile(
        &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}}),
    )
    .unwrap()
}

fn errors(field: Value, value: Value) -> Vec<String> {
    let schema = compile(json!({"f": field}));
    schema.validate(&json!({"spec": {"f": value}}), None).iter().map(ToString::to_string).collect()
}

#[rstest]
#[case(json!({"type": "integer"}), json!("a"), r#"spec.f: Invalid value: "string": spec.f in body must be of type integer: "string""#)]
#[case(json!({"type": "string"}), json!(null), r#"spec.f: Invalid value: "null": spec.f in body must be of type string: "null""#)]
#[case(json!({"type": "integer"}), json!(1.5), r#"spec.f: Invalid value: "number": spec.f in body must be of type integer: "number""#)]
#[case(json!({"type": "integer", "minimum": 1}), json!(0), "spec.f: Invalid value: 0: spec.f in body should be greater than or equal to 1")]
#[case(json!({"type": "integer", "maximum": 3}), json!(4), "spec.f: Invalid value: 4: spec.f in body should be less than or equal to 3")]
#[case(json!({"type": "number", "minimum": 0, "exclusiveMinimum": true}), json!(0), "spec.f: Invalid value: 0: spec.f in body should be greater than 0")]
#[case(json!({"type": "integer", "multipleOf": 2}), json!(3), "spec.f: Invalid value: 3: spec.f in body should be a multiple of 2")]
#[case(json!({"type": "string", "enum": ["a", "b"]}), json!("c"), r#"spec.f: Unsupported value: "c": supported values: "a", "b""#)]
#[case(json!({"type": "string", "maxLength": 2}), json!("abc"), "spec.f: Too long: may not be more than 2 bytes")]
#[case(json!({"type": "string", "minLength": 2}), json!("a"), r#"spec.f: Invalid value: "a": spec.f in body should be at least 2 chars long"#)]
#[case(json!({"type": "string", "pattern": "^a+$"}), json!("b"), r#"spec.f: Invalid value: "b": spec.f in body should match '^a+$'"#)]
#[case(json!({"type": "string", "format": "date-time"}), json!("x"), r#"spec.f: Invalid value: "x": spec.f in body must be of type date-time: "x""#)]
#[case(json!({"type": "array", "items": {"type": "string"}, "maxItems": 1}), json!(["a", "b"]), "spec.f: Too many: 2: must have at most 1 items")]
#[case(json!({"type": "array", "items": {"type": "string"}, "minItems": 1}), json!([]), "spec.f: Invalid value: []: spec.f in body should have at least 1 items")]
#[case(json!({"type": "array", "items": {"type": "string"}}), json!([1]), r#"spec.f[0]: Invalid value: "integer": spec.f[0] in body must be of type string: "integer""#)]
#[case(json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}), json!(["a", "a"]), r#"spec.f[1]: Duplicate value: "a""#)]
#[case(json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"],
    "items": {"type": "object", "required": ["n"], "properties": {"n": {"type": "string"}}}}),
    json!([{"n": "a"}, {"n": "a"}]), r#"spec.f[1]: Duplicate value: {"n":"a"}"#)]
#[case(json!({"type": "object", "required": ["x"], "properties": {"x": {"type": "string"}}}), json!({}), "spec.f.x: Required value")]
#[case(json!({"type": "object", "minProperties": 1, "additionalProperties": {"type": "string"}}), json!({}), "spec.f: Invalid value: {}: spec.f in body should have at least 1 properties")]
#[case(json!({"type": "object", "additionalProperties": {"type": "integer"}}), json!({"k": "v"}), r#"spec.f.k: Invalid value: "string": spec.f.k in body must be of type integer: "string""#)]
#[case(json!({"x-kubernetes-int-or-string": true}), json!(true), r#"spec.f: Invalid value: "boolean": spec.f in body must be of type integer,string: "boolean""#)]
#[case(json!({"type": "integer", "format": "int32"}), json!(4294967296i64), r#"spec.f: Invalid value: 4294967296: spec.f in body must be of type int32: "4294967296""#)]
#[case(json!({"type": "integer", "not": {"enum": [3]}}), json!(3), r#"<nil>: Invalid value: "": "spec.f" must not validate the schema (not)"#)]
fn one_violation(#[case] field: Value, #[case] value: Value, #[case] want: &str) {
    assert_eq!(errors(field, value), [want]);
}

#[rstest]
#[case(json!({"type": "string", "nullable": true}), json!(null))]
#[case(json!({"type": "integer"}), json!(3.0))]
#[case(json!({"type": "number"}), json!(3))]
#[case(json!({"x-kubernetes-int-or-string": true}), json!("50%"))]
#[case(json!({"type": "string", "format": "duration"}), json!("1h30m"))]
#[case(json!({"type": "string", "format": "uuid"}), json!("123e4567-e89b-12d3-a456-426614174000"))]
#[case(json!({"type": "string", "format": "no-such-format"}), json!("x"))]
#[case(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}), json!({"any": [1, {"thing": true}]}))]
#[case(json!({"type": "integer", "oneOf": [{"minimum": 5}, {"maximum": 3}]}), json!(6))]
#[case(json!({"type": "string", "anyOf": [{"pattern": "^a"}, {"pattern": "b$"}]}), json!("xb"))]
fn no_violation(#[case] field: Value, #[case] value: Value) {
    assert_eq!(errors(field, value), [""; 0]);
}

#[test]
fn branches_name_themselves() {
    let got = errors(json!({"type": "integer", "oneOf": [{"minimum": 5}, {"maximum": 3}]}), json!(4));
    assert_eq!(
        got[0],
        r#"<nil>: Invalid value: "": "spec.f" must validate one and only one schema (oneOf). Found none valid"#
    );
    let got = errors(json!({"type": "integer", "oneOf": [{"minimum": 1}, {"maximum": 9}]}), json!(4));
    assert_eq!(
        got,
        [
            r#"<nil>: Invalid value: "": "spec.f" must validate one and only one schema (oneOf). Found 2 valid alternatives"#
        ]
    );
    let got = errors(json!({"type": "integer", "anyOf": [{"minimum": 5}]}), json!(4));
    assert_eq!(got[0], r#"<nil>: Invalid value: "": "spec.f" must validate at least one schema (anyOf)"#);
}

#[rstest]
#[case::message(json!({"rule": "self.a <= self.b", "message": "a must not exceed b"}), json!({"a": 2, "b": 1}),
    Some("spec: Invalid value: a must not exceed b"))]
#[case::holds(json!({"rule": "self.a <= self.b"}), json!({"a": 1, "b": 1}), None)]
#[case::default_message(json!({"rule": "self.a <= self.b"}), json!({"a": 2, "b": 1}), Some("spec: Invalid value: failed rule: self.a <= self.b"))]
#[case::message_expression(json!({"rule": "self.a < 5", "messageExpression": "'a is ' + string(self.a)"}), json!({"a": 7, "b": 1}),
    Some("spec: Invalid value: a is 7"))]
#[case::field_path(json!({"rule": "self.a < 5", "message": "m", "fieldPath": ".a"}), json!({"a": 7, "b": 1}), Some("spec.a: Invalid value: m"))]
#[case::reason(json!({"rule": "self.a < 5", "message": "m", "fieldPath": ".a", "reason": "FieldValueForbidden"}), json!({"a": 7, "b": 1}),
    Some("spec.a: Forbidden: m"))]
#[case::required(json!({"rule": "has(self.c)", "message": "c is needed", "reason": "FieldValueRequired", "fieldPath": ".c"}),
    json!({"a": 1, "b": 1}), Some("spec.c: Required value: c is needed"))]
#[case::number_is_double(json!({"rule": "self.x * 2.0 < 3.0", "message": "m"}), json!({"a": 1, "b": 1, "x": 2}), Some("spec: Invalid value: m"))]
#[case::escaped_names(json!({"rule": "self.__namespace__ == 'n' && self.with__dash__dash == 1 && self.snake_case == 1", "message": "m"}),
    json!({"a": 1, "b": 1, "namespace": "n", "with-dash": 1, "snake_case": 1}), None)]
#[case::map_keys_are_not_escaped(json!({"rule": "self.m['a-b'] == 'x'"}), json!({"a": 1, "b": 1, "m": {"a-b": "x"}}), None)]
#[case::durations(json!({"rule": "self.d <= duration('1m')", "message": "m"}), json!({"a": 1, "b": 1, "d": "90s"}), Some("spec: Invalid value: m"))]
#[case::lists(json!({"rule": "self.l.all(x, x > 0)", "message": "m"}), json!({"a": 1, "b": 1, "l": [1, 0]}), Some("spec: Invalid value: m"))]
#[case::library(json!({"rule": "quantity(self.q).isGreaterThan(quantity('1Gi'))", "message": "m"}), json!({"a": 1, "b": 1, "q": "512Mi"}),
    Some("spec: Invalid value: m"))]
fn cel_rules(#[case] rule: Value, #[case] spec: Value, #[case] want: Option<&str>) {
    let schema = CompiledSchema::compile(&json!({"type": "object", "properties": {"spec": {
        "type": "object", "x-kubernetes-validations": [rule], "properties": {
            "a": {"type": "integer"}, "b": {"type": "integer"}, "c": {"type": "string"}, "x": {"type": "number"},
            "namespace": {"type": "string"}, "with-dash": {"type": "integer"}, "snake_case": {"type": "integer"},
            "m": {"type": "object", "additionalProperties": {"type": "string"}}, "d": {"type": "string", "format": "duration"},
            "l": {"type": "array", "items": {"type": "integer"}}, "q": {"type": "string"}}}}})).unwrap();
    let got: Vec<String> =
        schema.validate(&json!({"spec": spec}), None).iter().map(ToString::to_string).collect();
    assert_eq!(got, want.into_iter().collect::<Vec<_>>());
}

#[test]
fn cel_on_scalars_shows_the_value() {
    let got = errors(
        json!({"type": "integer", "x-kubernetes-validations": [{"rule": "self % 2 == 0", "message": "must be even"}]}),
        json!(3),
    );
    assert_eq!(got, ["spec.f: Invalid value: 3: must be even"]);
}

#[test]
fn transition_rules_need_a_past() {
    let schema = compile(
        json!({"f": {"type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf", "message": "may not shrink"}]}}),
    );
    let at = |n: i64| json!({"spec": {"f": n}});
    assert!(schema.validate(&at(1), None).is_empty());
    assert!(schema.validate(&at(3), Some(&at(2))).is_empty());
    assert_eq!(
        schema.validate(&at(1), Some(&at(2)))[0].to_string(),
        "spec.f: Invalid value: 1: may not shrink"
    );
}

#[test]
fn transition_rules_follow_list_map_items_by_key() {
    let schema = compile(
        json!({"l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"],
        "items": {"type": "object", "required": ["n"], "properties": {"n": {"type": "string"},
            "v": {"type": "integer", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "immutable"}]}}}}}),
    );
    let old = json!({"spec": {"l": [{"n": "a", "v": 1}, {"n": "b", "v": 2}]}});
    let moved = json!({"spec": {"l": [{"n": "b", "v": 2}, {"n": "a", "v": 1}, {"n": "c", "v": 9}]}});
    assert!(schema.validate(&moved, Some(&old)).is_empty());
    let changed = json!({"spec": {"l": [{"n": "b", "v": 3}]}});
    assert_eq!(
        schema.validate(&changed, Some(&old))[0].to_string(),
        "spec.l[0].v: Invalid value: 3: immutable"
    );
}

#[test]
fn optional_old_self_also_runs_on_create() {
    let rule = json!([{"rule": "!oldSelf.hasValue() || self == oldSelf.value()", "message": "immutable", "optionalOldSelf": true}]);
    let schema = compile(json!({"f": {"type": "string", "x-kubernetes-validations": rule}}));
    let at = |v: &str| json!({"spec": {"f": v}});
    assert!(schema.validate(&at("a"), None).is_empty());
    assert_eq!(
        schema.validate(&at("b"), Some(&at("a")))[0].to_string(),
        "spec.f: Invalid value: \"b\": immutable"
    );
}

#[test]
fn errors_block_rules_and_say_so() {
    let got: Vec<String> =
        CompiledSchema::compile(&json!({"type": "object", "properties": {"spec": {"type": "object",
        "x-kubernetes-validations": [{"rule": "self.a > 0"}], "properties": {"a": {"type": "integer"}}}}}))
        .unwrap()
        .validate(&json!({"spec": {"a": "x"}}), None)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(got.len(), 2);
    assert!(
        got[1].starts_with("<nil>: Invalid value: null: some validation rules were not checked"),
        "{got:?}"
    );
}

#[test]
fn updates_are_ratcheted() {
    let schema = compile(json!({"f": {"type": "integer", "maximum": 3}, "g": {"type": "integer"}}));
    let old = json!({"spec": {"f": 9, "g": 1}});
    assert!(schema.validate(&json!({"spec": {"f": 9, "g": 2}}), Some(&old)).is_empty());
    assert_eq!(schema.validate(&json!({"spec": {"f": 8, "g": 2}}), Some(&old)).len(), 1);
}

#[test]
fn prune_and_unknown_fields() {
    let schema = compile(json!({
        "a": {"type": "string"},
        "l": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string"}}}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
            "known": {"type": "object", "properties": {"y": {"type": "string"}}}}},
        "m": {"type": "object", "additionalProperties": {"type": "object", "properties": {"z": {"type": "string"}}}},
        "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
    }));
    let mut object = json!({"apiVersion": "x", "kind": "X", "metadata": {"name": "n", "labels": {"a": "b"}}, "bogus": 1,
        "spec": {"a": "1", "b": 2, "l": [{"x": "1", "q": 1}], "free": {"any": 1, "known": {"y": "1", "n": 1}},
            "m": {"k": {"z": "1", "zz": 1}}, "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {}, "x": 1}}});
    let mut unknown = schema.unknown_fields(&object);
    unknown.sort();
    assert_eq!(unknown, ["bogus", "spec.b", "spec.free.known.n", "spec.l[0].q", "spec.m.k.zz", "spec.pod.x"]);
    schema.prune(&mut object);
    assert_eq!(
        object,
        json!({"apiVersion": "x", "kind": "X", "metadata": {"name": "n", "labels": {"a": "b"}},
        "spec": {"a": "1", "l": [{"x": "1"}], "free": {"any": 1, "known": {"y": "1"}}, "m": {"k": {"z": "1"}},
            "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {}}}})
    );
    assert!(schema.unknown_fields(&object).is_empty());
}

#[test]
fn defaults_fill_gaps_only() {
    let schema = compile(json!({
        "mode": {"type": "string", "default": "Enforce"},
        "nested": {"type": "object", "default": {}, "properties": {"n": {"type": "integer", "default": 3}}},
        "absent": {"type": "object", "properties": {"n": {"type": "integer", "default": 3}}},
        "l": {"type": "array", "items": {"type": "object", "properties": {"p": {"type": "string", "default": "TCP"}}}},
        "keep": {"type": "string", "nullable": true, "default": "d"},
        "plain": {"type": "string"},
    }));
    let mut object = json!({"spec": {"mode": null, "l": [{}, {"p": "UDP"}], "keep": null, "plain": null}});
    schema.default(&mut object);
    assert_eq!(
        object["spec"],
        json!({"mode": "Enforce", "nested": {"n": 3}, "l": [{"p": "TCP"}, {"p": "UDP"}], "keep": null})
    );
    let once = object.clone();
    schema.default(&mut object);
    assert_eq!(object, once);
}

#[rstest]
#[case(json!({"f": {}}), "properties[spec].properties[f].type: Required value: must not be empty for specified object fields")]
#[case(json!({"f": {"type": "strin"}}), "properties[spec].properties[f].type: Unsupported value: \"strin\"")]
#[case(json!({"f": {"type": "array"}}), "properties[spec].properties[f].items: Required value: must be specified")]
#[case(json!({"f": {"type": "string", "pattern": "("}}), "properties[spec].properties[f].pattern: Invalid value: \"(\": must be a valid regular expression")]
#[case(json!({"f": {"type": "integer", "default": "x"}}), "properties[spec].properties[f].default: Invalid value: \"string\"")]
#[case(json!({"f": {"type": "object", "default": {"x": 1}, "properties": {}}}), "properties[spec].properties[f].default.x: Invalid value")]
#[case(json!({"f": {"type": "string", "x-kubernetes-validations": [{"rule": "self =="}]}}), "properties[spec].properties[f].x-kubernetes-validations[0].rule: Invalid value: {\"Rule\":\"self ==\"")]
#[case(json!({"f": {"type": "string", "x-kubernetes-list-type": "set"}}), "properties[spec].properties[f].type: Invalid value: \"string\": must be array")]
#[case(json!({"f": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "string"}}}, "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["n"]}}), "properties[spec].properties[f].items.properties[n].default: Required value")]
fn unusable_schemas(#[case] properties: Value, #[case] want: &str) {
    let error = CompiledSchema::compile(
        &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}}),
    )
    .unwrap_err();
    assert!(error.to_string().starts_with(want), "{error}");
}

#[rstest]
#[case("date", "2024-02-30", false)]
#[case("date", "2024-02-29", true)]
#[case("date-time", "2024-02-29T00:00:00.5+02:00", true)]
#[case("duration", "1.5s", true)]
#[case("duration", "5", false)]
#[case("duration", "", false)]
#[case("ipv4", "1.2.3.4", true)]
#[case("ipv4", "::1", false)]
#[case("cidr", "10.0.0.0/33", false)]
#[case("byte", "aGk=", true)]
#[case("mac", "00:11:22:33:44:55", true)]
#[case("hostname", "-x", false)]
#[case("email", "a@b.c", true)]
#[case("uri", "hf://org/model", true)]
#[case("uri", "not a uri", false)]
fn string_formats(#[case] format: &str, #[case] text: &str, #[case] want: bool) {
    assert_eq!(formats::check(format, text), want);
}

proptest::proptest! {
    #[test]
    fn numbers_and_strings_never_panic(text in ".*", number in proptest::num::f64::ANY) {
        let _ = errors(json!({"type": "string", "format": "duration", "pattern": "^.$"}), json!(text));
        let _ = errors(json!({"type": "integer", "minimum": 1, "multipleOf": 3}), json!(number));
        for format in ["date", "duration", "uri", "cidr", "mac", "uuid", "email", "hostname"] {
            let _ = formats::check(format, &text);
        }
    }
}

#[test]
fn compiled_schemas_can_be_shared() {
    fn shared<T: Send + Sync>() {}
    shared::<CompiledSchema>();
}
