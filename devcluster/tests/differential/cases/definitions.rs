//! CustomResourceDefinitions and their objects: pruning, defaults, validation, CEL, versions, scale, our own.

use std::path::Path;

use serde_json::{Value, json};

use super::y;
use crate::script::Script;

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn definition(group: &str, spec: &str) -> Value {
    // Cases are played side by side, so each has names of its own.
    let suffix = match group.split('.').next() {
        Some("boats") | None => String::new(),
        Some(other) => format!("-{other}"),
    };
    let mut crd = y(&format!(
        "{{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {{name: boats.{group}}}, spec: {{group: {group}, \
         scope: Namespaced, names: {{plural: boats, singular: boat, kind: Boat, listKind: BoatList, shortNames: [bo{suffix}], categories: [fleet{suffix}]}}}}}}"
    ));
    crd["spec"]["versions"] = y(spec);
    crd
}

/// Makes a definition and waits until its objects are served.
fn serve(s: &mut Script, group: &str, crd: Value) {
    s.post("definition", CRDS, crd);
    s.until("established", &format!("{CRDS}/boats.{group}"), 200, "InitialNamesAccepted");
    s.until("served", &format!("/apis/{group}/v1/namespaces/{{ns}}/boats"), 200, "BoatList");
}

pub fn objects() -> Script {
    let mut s = Script::new("boats");
    let group = "boats.example.com";
    serve(&mut s, group, definition(group, "
- name: v1
  served: true
  storage: true
  subresources:
    status: {}
    scale: {specReplicasPath: .spec.crew, statusReplicasPath: .status.aboard, labelSelectorPath: .status.selector}
  selectableFields: [{jsonPath: .spec.flag}]
  additionalPrinterColumns:
  - {name: Crew, type: integer, jsonPath: .spec.crew}
  - {name: Flag, type: string, jsonPath: .spec.flag, priority: 1, description: Her flag.}
  - {name: Ready, type: string, jsonPath: '.status.conditions[?(@.type==\"Ready\")].status'}
  - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
  schema:
    openAPIV3Schema:
      type: object
      description: A boat floats.
      required: [spec]
      properties:
        spec:
          type: object
          x-kubernetes-validations:
          - {rule: self.draft <= self.depth, message: a boat draws no more water than there is}
          - {rule: '!has(self.tons) || self.tons < 100', messageExpression: '\"she bears no more\"', fieldPath: .tons, reason: FieldValueForbidden}
          properties:
            crew: {type: integer, format: int32, default: 1, minimum: 0, maximum: 10, description: How many sail her.}
            draft: {type: number, default: 1.5}
            depth: {type: number, default: 10}
            tons: {type: integer}
            flag:
              type: string
              enum: [red, green]
              x-kubernetes-validations: [{rule: self == oldSelf, message: a flag is for life}]
            loads:
              type: array
              maxItems: 3
              x-kubernetes-list-type: map
              x-kubernetes-list-map-keys: [name]
              items: {type: object, required: [name], properties: {name: {type: string, minLength: 2}, tons: {type: integer, default: 7}}}
            tags: {type: array, x-kubernetes-list-type: set, items: {type: string}}
            any: {x-kubernetes-preserve-unknown-fields: true}
            port: {x-kubernetes-int-or-string: true, anyOf: [{type: integer}, {type: string}]}
            built: {type: string, format: date-time}
            owner: {type: string, pattern: '^[a-z]+$', nullable: true}
            template: {type: object, x-kubernetes-embedded-resource: true, x-kubernetes-preserve-unknown-fields: true}
        status:
          type: object
          properties:
            aboard: {type: integer}
            selector: {type: string}
            conditions: {type: array, items: {type: object, properties: {type: {type: string}, status: {type: string}}}}
"));
    s.get("definition in the end", &format!("{CRDS}/boats.{group}"));
    let boats = format!("/apis/{group}/v1/namespaces/{{ns}}/boats");
    let one = format!("{boats}/ann");
    let boat = |name: &str, spec: &str| {
        y(&format!("{{apiVersion: {group}/v1, kind: Boat, metadata: {{name: {name}}}, spec: {spec}}}"))
    };
    s.post(
        "create",
        &boats,
        boat("ann", "{flag: red, loads: [{name: coal}], unknown: 1, any: {x: [1, {y: null}]}, port: 80}"),
    );
    s.post(
        "create, unknown, strict",
        &format!("{boats}?fieldValidation=Strict"),
        boat("bea", "{unknown: 1, loads: [{name: coal, kind: x}]}"),
    );
    s.post("create, with status", &boats, y(&format!("{{apiVersion: {group}/v1, kind: Boat, metadata: {{name: cat}}, spec: {{}}, status: {{aboard: 3}}}}")));
    for (step, spec) in [
        ("maximum", "{crew: 11}"),
        ("minimum", "{crew: -1}"),
        ("type", "{crew: many}"),
        ("number for an integer", "{crew: 1.5}"),
        ("whole number as float", "{crew: 2.0}"),
        ("enum", "{flag: blue}"),
        ("rule", "{draft: 11}"),
        ("rule with an expression", "{tons: 200}"),
        ("two at once", "{crew: 11, flag: blue, tons: 200}"),
        ("list too long", "{loads: [{name: aa}, {name: bb}, {name: cc}, {name: dd}]}"),
        ("key twice", "{loads: [{name: aa}, {name: aa}]}"),
        ("no key", "{loads: [{tons: 1}]}"),
        ("short", "{loads: [{name: a}]}"),
        ("set twice", "{tags: [a, a]}"),
        ("date", "{built: yesterday}"),
        ("pattern", "{owner: A}"),
        ("null", "{owner: null, flag: null}"),
        ("int or string", "{port: [1]}"),
        ("embedded", "{template: {spec: {}}}"),
        (
            "good embedded",
            "{template: {apiVersion: v1, kind: Pod, metadata: {name: x, extra: 1}, spec: {a: b}}}",
        ),
        ("list for an object", "{template: []}"),
    ] {
        s.post(step, &boats, boat("dora", spec));
        s.delete(&format!("{step}, after"), &format!("{boats}/dora"), Value::Null);
    }
    s.post("no spec", &boats, y(&format!("{{apiVersion: {group}/v1, kind: Boat, metadata: {{name: eve}}}}")));
    s.post("no kind", &boats, y("{metadata: {name: eve}, spec: {}}"));
    s.post(
        "other kind",
        &boats,
        y(&format!("{{apiVersion: {group}/v1, kind: Ship, metadata: {{name: eve}}, spec: {{}}}}")),
    );
    s.post("bad name", &boats, boat("Eve", "{}"));
    s.post("no name", &boats, y(&format!("{{apiVersion: {group}/v1, kind: Boat, spec: {{}}}}")));
    s.post(
        "generated",
        &boats,
        y(&format!("{{apiVersion: {group}/v1, kind: Boat, metadata: {{generateName: eve-}}, spec: {{}}}}")),
    );
    s.merge("transition", &one, y("{spec: {flag: green}}"));
    s.merge("generation", &one, y("{spec: {crew: 3}}"));
    s.merge("no change", &one, y("{spec: {crew: 3}}"));
    s.merge("labels", &one, y("{metadata: {labels: {a: b}}}"));
    s.merge("status of the object", &one, y("{status: {aboard: 2}}"));
    s.merge(
        "status",
        &format!("{one}/status"),
        y("{status: {aboard: 2, selector: a=b, unknown: 1}, spec: {crew: 9}, metadata: {labels: {c: d}}}"),
    );
    s.merge("bad status", &format!("{one}/status"), y("{status: {aboard: many}}"));
    s.get("status read", &format!("{one}/status"));
    s.put("put without version", &one, boat("ann", "{flag: red}"));
    s.put("put", &one, y(&format!("{{apiVersion: {group}/v1, kind: Boat, metadata: {{name: ann, resourceVersion: '@{{status:/metadata/resourceVersion}}'}}, spec: {{flag: red, crew: 4}}}}")));
    s.put("put of an old one", &one, y(&format!("{{apiVersion: {group}/v1, kind: Boat, metadata: {{name: ann, resourceVersion: '@{{create:/metadata/resourceVersion}}'}}, spec: {{flag: red, crew: 4}}}}")));
    s.put("put of nothing", &format!("{boats}/zoe"), boat("zoe", "{}"));
    s.strategic("strategic", &one, y("{spec: {crew: 5}}"));
    s.json_patch("json patch", &one, json!([{"op": "replace", "path": "/spec/crew", "value": 6}]));
    s.get("scale", &format!("{one}/scale"));
    s.merge("scale up", &format!("{one}/scale"), y("{spec: {replicas: 7}}"));
    s.merge("scale too far", &format!("{one}/scale"), y("{spec: {replicas: 70}}"));
    s.merge("scale below", &format!("{one}/scale"), y("{spec: {replicas: -1}}"));
    s.put("scale put", &format!("{one}/scale"), y("{apiVersion: autoscaling/v1, kind: Scale, metadata: {name: ann, namespace: '{ns}'}, spec: {replicas: 8}}"));
    s.get("after scale", &one);
    s.apply(
        "apply",
        &format!("{one}?fieldManager=one"),
        boat("ann", "{loads: [{name: coal, tons: 9}], crew: 8}"),
    );
    s.apply(
        "apply, conflict",
        &format!("{one}?fieldManager=two"),
        boat("ann", "{loads: [{name: coal, tons: 8}, {name: iron}], crew: 9}"),
    );
    s.apply(
        "apply, forced",
        &format!("{one}?fieldManager=two&force=true"),
        boat("ann", "{loads: [{name: coal, tons: 8}, {name: iron}], crew: 9, tags: [a, b]}"),
    );
    s.apply(
        "apply, less",
        &format!("{one}?fieldManager=two&force=true"),
        boat("ann", "{loads: [{name: iron}], tags: [b]}"),
    );
    s.apply("apply, unknown", &format!("{one}?fieldManager=two&force=true"), boat("ann", "{unknown: 1}"));
    s.apply("apply, invalid", &format!("{one}?fieldManager=two&force=true"), boat("ann", "{crew: 50}"));
    s.apply("apply status", &format!("{one}/status?fieldManager=status"), y(&format!("{{apiVersion: {group}/v1, kind: Boat, metadata: {{name: ann}}, status: {{aboard: 5, conditions: [{{type: Ready, status: 'True'}}]}}}}")));
    s.apply("apply new", &format!("{boats}/fay?fieldManager=one"), boat("fay", "{crew: 2}"));
    s.get("list", &boats);
    s.get("by field", &format!("{boats}?fieldSelector=spec.flag=red"));
    s.get("by unsupported field", &format!("{boats}?fieldSelector=spec.crew=1"));
    s.get_as("table", "application/json;as=Table;g=meta.k8s.io;v=v1", &boats);
    s.get_as("metadata", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", &boats);
    s.get("resources", &format!("/apis/{group}/v1"));
    s.get("group", &format!("/apis/{group}"));
    s.kubectl("kubectl get", "get bo -n {ns}", "");
    s.kubectl("kubectl get wide", "get boats -n {ns} -o wide", "");
    s.kubectl("kubectl get by category", "get fleet -n {ns}", "");
    s.kubectl("kubectl describe", "describe boat ann -n {ns}", "");
    s.kubectl("kubectl explain", "explain boat.spec --recursive", "");
    s.kubectl("kubectl explain one", "explain boat.spec.crew", "");
    s.kubectl("kubectl scale", "scale boat ann -n {ns} --replicas=3", "");
    s.kubectl("kubectl apply, invalid", "apply -n {ns} -f -", &boat("gil", "{crew: 11}").to_string());
    s.kubectl("kubectl apply, misspelt", "apply -n {ns} -f -", &boat("gil", "{crw: 1}").to_string());
    s.kubectl("kubectl apply", "apply -n {ns} -f -", &boat("gil", "{crew: 1}").to_string());
    s.kubectl("kubectl apply, changed", "apply -n {ns} -f -", &boat("gil", "{crew: 2}").to_string());
    s.kubectl(
        "kubectl apply, server-side",
        "apply -n {ns} --server-side -f -",
        &boat("gil", "{crew: 3}").to_string(),
    );
    s.kubectl("kubectl wait", "wait -n {ns} --for=condition=Ready boat/ann --timeout=5s", "");
    s.kubectl("kubectl get yaml", "get boat gil -n {ns} -o yaml --show-managed-fields", "");
    s.delete("delete", &one, Value::Null);
    s.delete("delete all", &boats, Value::Null);
    s.delete("delete the definition", &format!("{CRDS}/boats.{group}"), Value::Null);
    s.until("definition gone", &format!("{CRDS}/boats.{group}"), 404, "");
    s.until("not served", &boats, 404, "");
    s
}

pub fn schemas() -> Script {
    let mut s = Script::new("versions");
    let group = "versions.example.com";
    let version = |name: &str, storage: bool| {
        format!(
            "{{name: {name}, served: true, storage: {storage}, schema: {{openAPIV3Schema: {{type: object, properties: {{spec: {{type: object, \
             x-kubernetes-preserve-unknown-fields: true}}, status: {{type: object}}}}}}}}}}"
        )
    };
    let mut crd = definition(group, &format!("[{}, {}]", version("v1", true), version("v1beta1", false)));
    crd["spec"]["versions"][1]["deprecated"] = true.into();
    serve(&mut s, group, crd);
    let boats = format!("/apis/{group}/v1/namespaces/{{ns}}/boats");
    let old = format!("/apis/{group}/v1beta1/namespaces/{{ns}}/boats");
    s.post("create", &old, y(&format!("{{apiVersion: {group}/v1beta1, kind: Boat, metadata: {{name: a}}, spec: {{x: {{y: 1}}}}, status: {{}}}}")));
    s.get("other version", &format!("{boats}/a"));
    s.get("first version", &format!("{old}/a"));
    s.put("no subresource", &format!("{boats}/a/status"), json!({}));
    s.get("no scale", &format!("{boats}/a/scale"));
    s.merge("status without subresource", &format!("{boats}/a"), y("{status: {a: b}}"));
    s.apply(
        "apply in one version",
        &format!("{boats}/a?fieldManager=m"),
        y(&format!("{{apiVersion: {group}/v1, kind: Boat, metadata: {{name: a}}, spec: {{z: 1}}}}")),
    );
    s.apply(
        "apply in the other",
        &format!("{old}/a?fieldManager=m"),
        y(&format!("{{apiVersion: {group}/v1beta1, kind: Boat, metadata: {{name: a}}, spec: {{w: 1}}}}")),
    );
    s.get("group", &format!("/apis/{group}"));
    s.get("resources", &format!("/apis/{group}/v1"));
    s.kubectl("get", "get boats -n {ns}", "");
    s.kubectl("get of a version", "get boats.v1beta1.{GROUP} -n {ns}".replace("{GROUP}", group).as_str(), "");
    s.merge("add a column", &format!("{CRDS}/boats.{group}"), y("{metadata: {labels: {a: b}}}"));
    s.merge("change names", &format!("{CRDS}/boats.{group}"), y("{spec: {names: {plural: ships}}}"));
    s.merge("change scope", &format!("{CRDS}/boats.{group}"), y("{spec: {scope: Cluster}}"));
    s.merge("change group", &format!("{CRDS}/boats.{group}"), y("{spec: {group: other.example.com}}"));
    s.delete("delete", &format!("{CRDS}/boats.{group}"), Value::Null);
    s.until("gone", &format!("{CRDS}/boats.{group}"), 404, "");
    s
}

pub fn refused() -> Script {
    let mut s = Script::bare("refused");
    let good = || {
        definition(
            "refused.example.com",
            "[{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {a: {type: string}}}}}}}]",
        )
    };
    let mut try_with = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut crd = good();
        change(&mut crd);
        s.post(name, &format!("{CRDS}?dryRun=All"), crd);
    };
    try_with("good", &|_| {});
    try_with("wrong name", &|c| c["metadata"]["name"] = "ships.refused.example.com".into());
    try_with("no dot", &|c| {
        c["spec"]["group"] = "refused".into();
        c["metadata"]["name"] = "boats.refused".into();
    });
    try_with("no versions", &|c| c["spec"]["versions"] = json!([]));
    try_with("no storage", &|c| c["spec"]["versions"][0]["storage"] = false.into());
    try_with("no schema", &|c| c["spec"]["versions"][0]["schema"] = Value::Null);
    try_with("bad scope", &|c| c["spec"]["scope"] = "Galaxy".into());
    try_with("no kind", &|c| c["spec"]["names"]["kind"] = "".into());
    try_with("bad plural", &|c| c["spec"]["names"]["plural"] = "Boats".into());
    try_with("bad version", &|c| c["spec"]["versions"][0]["name"] = "V1".into());
    try_with("bad scale", &|c| {
        c["spec"]["versions"][0]["subresources"] =
            y("{scale: {specReplicasPath: crew, statusReplicasPath: .spec.aboard}}")
    });
    let schema = |c: &mut Value, at: &str, value: Value| {
        *c.pointer_mut("/spec/versions/0/schema/openAPIV3Schema").unwrap().pointer_mut(at).unwrap() = value;
    };
    try_with("bad type", &|c| schema(c, "/properties/spec/properties/a", y("{type: text}")));
    try_with("no type", &|c| schema(c, "/properties/spec/properties/a", y("{description: x}")));
    try_with("bad default", &|c| schema(c, "/properties/spec/properties/a", y("{type: string, default: 5}")));
    try_with("bad pattern", &|c| {
        schema(c, "/properties/spec/properties/a", y("{type: string, pattern: '('}"))
    });
    try_with("bad rule", &|c| {
        schema(
            c,
            "/properties/spec/properties/a",
            y("{type: string, x-kubernetes-validations: [{rule: 'self +'}]}"),
        )
    });
    try_with("rule of a wrong type", &|c| {
        schema(
            c,
            "/properties/spec/properties/a",
            y("{type: string, x-kubernetes-validations: [{rule: 'self + self'}]}"),
        )
    });
    try_with("rule of an unknown field", &|c| {
        schema(
            c,
            "/properties/spec/properties/a",
            y(
                "{type: object, properties: {b: {type: string}}, x-kubernetes-validations: [{rule: 'self.c == 1'}]}",
            ),
        )
    });
    try_with("rule without text", &|c| {
        schema(
            c,
            "/properties/spec/properties/a",
            y("{type: string, x-kubernetes-validations: [{message: x}]}"),
        )
    });
    try_with("map list without keys", &|c| {
        schema(
            c,
            "/properties/spec/properties/a",
            y(
                "{type: array, x-kubernetes-list-type: map, items: {type: object, properties: {n: {type: string}}}}",
            ),
        )
    });
    try_with("additional and properties", &|c| {
        schema(
            c,
            "/properties/spec/properties/a",
            y("{type: object, properties: {b: {type: string}}, additionalProperties: {type: string}}"),
        )
    });
    try_with("root not an object", &|c| schema(c, "", y("{type: string}")));
    try_with("unknown field of the schema", &|c| {
        schema(c, "/properties/spec/properties/a", y("{type: string, wrong: 1}"))
    });
    s
}

/// Our own definitions and examples, as they are committed.
pub fn ours() -> Script {
    let mut s = Script::new("plimsoll");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let files = |folder: &str| {
        let mut files: Vec<_> =
            std::fs::read_dir(root.join(folder)).unwrap().map(|e| e.unwrap().path()).collect();
        files.retain(|f| f.extension().is_some_and(|e| e == "yaml"));
        files.sort();
        files
    };
    for (number, file) in files("crds/yaml").iter().enumerate() {
        let text = std::fs::read_to_string(file).unwrap();
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        s.kubectl(&format!("definition {name}"), "apply --server-side -f -", &text);
        s.kubectl(&format!("definition {name} again"), "apply --server-side -f -", &text);
        assert!(number < 100);
    }
    s.kubectl("established", "wait --for=condition=Established crd --all --timeout=20s", "").compared = false;
    s.kubectl("definition", "get crd modelpools.plimsoll.dev -o json --show-managed-fields", "");
    for file in files("examples") {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        s.kubectl(&format!("example {name}"), "apply -n {ns} -f -", &text);
        s.kubectl(
            &format!("example {name} as json"),
            "get -n {ns} -f - -o json --show-managed-fields",
            &text,
        );
        s.kubectl(&format!("example {name} as table"), "get -n {ns} -f -", &text);
    }
    let pools = "/apis/plimsoll.dev/v1alpha1/namespaces/{ns}/modelpools";
    let pool = |spec: &str| {
        y(&format!(
            "{{apiVersion: plimsoll.dev/v1alpha1, kind: ModelPool, metadata: {{name: p}}, spec: {spec}}}"
        ))
    };
    for (name, spec) in [
        ("pool, empty", "{}"),
        ("pool, no preset", "{model: {name: m}}"),
        ("pool, good", "{model: {name: m, preset: llama-3.1-8b}, slo: {ttft: {p95: 2s}, tpot: {p95: 50ms}}}"),
        ("pool, bad slo", "{model: {name: m, preset: llama-3.1-8b}, slo: {ttft: {p95: fast}}}"),
        ("pool, bad scaling", "{model: {name: m, preset: llama-3.1-8b}, scaling: {min: 5, max: 2}}"),
        ("pool, bad mode", "{model: {name: m, preset: llama-3.1-8b}, mode: Sometimes}"),
        (
            "pool, bad numbers",
            "{model: {name: m, preset: llama-3.1-8b}, scaling: {min: -1, max: many}, priority: 1.5}",
        ),
        ("pool, unknown", "{model: {name: m, preset: llama-3.1-8b, nothing: 1}}"),
    ] {
        s.post(name, &format!("{pools}?dryRun=All"), pool(spec));
        s.apply(&format!("{name}, applied"), &format!("{pools}/p?dryRun=All&fieldManager=m"), pool(spec));
        s.kubectl(
            &format!("{name}, by kubectl"),
            "apply -n {ns} --dry-run=server -f -",
            &pool(spec).to_string(),
        );
    }
    s.kubectl("explain", "explain modelpool.spec", "");
    s.kubectl("explain all", "explain modelpool --recursive", "");
    s.kubectl("api-resources", "api-resources --api-group=plimsoll.dev -o wide", "");
    s
}
