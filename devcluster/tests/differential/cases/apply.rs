//! Server-side apply: ownership, conflicts, lists, and objects that were written otherwise before.

use http::Method;

use super::{at, y};
use crate::script::Script;

fn deployment(spec: &str) -> serde_json::Value {
    y(&format!("{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: d}}, spec: {spec}}}"))
}

pub fn objects() -> Script {
    let mut s = Script::new("apply");
    let maps = at("configmaps");
    let by = |name: &str, manager: &str| format!("{maps}/{name}?fieldManager={manager}");
    let map =
        |data: &str| y(&format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: m}}, data: {data}}}"));
    s.apply("no manager", &format!("{maps}/m"), map("{a: '1'}"));
    s.apply("create", &by("m", "one"), map("{a: '1', b: '1'}"));
    s.apply("again", &by("m", "one"), map("{a: '1', b: '1'}"));
    s.apply("other, shared", &by("m", "two"), map("{a: '1', c: '1'}"));
    s.apply("conflict", &by("m", "two"), map("{a: '2', b: '2'}"));
    s.apply("forced", &(by("m", "two") + "&force=true"), map("{a: '2', b: '2'}"));
    s.apply("gives up", &by("m", "one"), map("{}"));
    s.apply("removes", &by("m", "two"), map("{a: '2'}"));
    s.merge("update beside", &by("m", "three"), y("{data: {a: '3', d: '3'}}"));
    s.apply("conflict with an update", &by("m", "two"), map("{a: '2'}"));
    s.apply("two conflicts", &by("m", "four"), map("{a: '4', d: '4'}"));
    s.apply("dry", &(by("m", "four") + "&force=true&dryRun=All"), map("{a: '4', d: '4'}"));
    s.get("after dry", &format!("{maps}/m"));
    s.apply("metadata", &by("m", "meta"), y("{apiVersion: v1, kind: ConfigMap, metadata: {name: m, labels: {l: '1'}, annotations: {a: '1'}, finalizers: [a.b/c]}}"));
    s.apply("metadata gone", &by("m", "meta"), y("{apiVersion: v1, kind: ConfigMap, metadata: {name: m}}"));
    s.apply(
        "managed fields",
        &by("m", "one"),
        y("{apiVersion: v1, kind: ConfigMap, metadata: {name: m, managedFields: [{manager: x}]}}"),
    );
    s.apply(
        "managed fields, empty",
        &by("m", "one"),
        y("{apiVersion: v1, kind: ConfigMap, metadata: {name: m, managedFields: []}}"),
    );
    s.apply("wrong name", &by("m", "one"), y("{apiVersion: v1, kind: ConfigMap, metadata: {name: n}}"));
    s.apply("no kind", &by("m", "one"), y("{metadata: {name: m}}"));
    s.apply("wrong kind", &by("m", "one"), y("{apiVersion: v1, kind: Secret, metadata: {name: m}}"));
    s.apply("no name", &by("m", "one"), y("{apiVersion: v1, kind: ConfigMap}"));
    s.apply(
        "other namespace",
        &by("m", "one"),
        y("{apiVersion: v1, kind: ConfigMap, metadata: {name: m, namespace: default}}"),
    );
    s.apply(
        "unknown field",
        &by("m", "one"),
        y("{apiVersion: v1, kind: ConfigMap, metadata: {name: m}, extra: 1}"),
    );
    s.apply(
        "bad type",
        &by("m", "one"),
        y("{apiVersion: v1, kind: ConfigMap, metadata: {name: m}, data: {a: 1}}"),
    );
    s.apply(
        "old version",
        &by("m", "one"),
        y("{apiVersion: v1, kind: ConfigMap, metadata: {name: m, resourceVersion: '1'}}"),
    );
    s.apply("uid of nothing", &by("n", "one"), y("{apiVersion: v1, kind: ConfigMap, metadata: {name: n, uid: 00000000-0000-4000-8000-000000000000}}"));
    s.apply("bad force", &(by("m", "one") + "&force=perhaps"), map("{}"));
    s.merge("force of a merge", &(by("m", "one") + "&force=true"), y("{data: {a: '1'}}"));
    s.request(
        "yaml",
        Method::PATCH,
        &by("y", "one"),
        &[("content-type", "application/apply-patch+yaml")],
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: y\ndata:\n  a: |\n    text\n",
    );
    s.request(
        "broken yaml",
        Method::PATCH,
        &by("y", "one"),
        &[("content-type", "application/apply-patch+yaml")],
        "apiVersion: {v1",
    );
    s.put(
        "clears managed fields",
        &format!("{maps}/y"),
        y("{apiVersion: v1, kind: ConfigMap, metadata: {name: y, managedFields: [{}]}, data: {a: text}}"),
    );
    s.apply(
        "over cleared ones",
        &by("y", "one"),
        y("{apiVersion: v1, kind: ConfigMap, metadata: {name: y}, data: {a: other}}"),
    );
    s.post("made without a manager", &(maps.clone()), y("{metadata: {name: z}, data: {a: '1', b: '1'}}"));
    s.apply(
        "over a create",
        &by("z", "one"),
        y("{apiVersion: v1, kind: ConfigMap, metadata: {name: z}, data: {a: '2'}}"),
    );
    s.apply(
        "over a create, same",
        &by("z", "one"),
        y("{apiVersion: v1, kind: ConfigMap, metadata: {name: z}, data: {a: '1'}}"),
    );
    s
}

pub fn lists() -> Script {
    let mut s = Script::new("applylists");
    let path = at("apps/v1/deployments") + "/d?fieldManager=";
    let by = |manager: &str| format!("{path}{manager}");
    s.apply("create", &by("one"), deployment("{replicas: 1, selector: {matchLabels: {app: d}}, template: {metadata: {labels: {app: d}}, spec: {containers: [{name: a, image: 'a:1', env: [{name: A, value: '1'}, {name: B, value: '1'}], ports: [{containerPort: 80}], resources: {limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 0.5, memory: 1024Mi}}}], tolerations: [{key: x, operator: Exists}]}}}"));
    s.apply("beside", &by("two"), deployment("{template: {spec: {containers: [{name: a, env: [{name: C, value: '1'}]}, {name: b, image: 'b:1'}]}}}"));
    s.apply("conflict in a list", &by("two"), deployment("{replicas: 3, template: {spec: {containers: [{name: a, image: 'a:2', env: [{name: A, value: '2'}]}]}}}"));
    s.apply(
        "conflict of atomic lists",
        &by("two"),
        deployment("{template: {spec: {tolerations: [{key: y, operator: Exists}]}}}"),
    );
    s.apply("removes items", &by("one"), deployment("{replicas: 1, selector: {matchLabels: {app: d}}, template: {metadata: {labels: {app: d}}, spec: {containers: [{name: a, image: 'a:1', env: [{name: B, value: '1'}]}]}}}"));
    s.apply(
        "gives a container up",
        &by("two"),
        deployment("{template: {spec: {containers: [{name: a, env: [{name: C, value: '1'}]}]}}}"),
    );
    s.apply("same key twice", &by("two"), deployment("{template: {spec: {containers: [{name: a, env: [{name: C, value: '1'}, {name: C, value: '2'}]}]}}}"));
    s.apply("no key", &by("two"), deployment("{template: {spec: {containers: [{image: 'c:1'}]}}}"));
    s.apply("no list", &by("two"), deployment("{template: {spec: {containers: {}}}}"));
    s.apply("status", &(at("apps/v1/deployments") + "/d/status?fieldManager=three"), y("{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}, status: {replicas: 1, conditions: [{type: Available, status: 'True'}]}}"));
    s.apply(
        "scale",
        &(at("apps/v1/deployments") + "/d/scale?fieldManager=four"),
        y("{apiVersion: autoscaling/v1, kind: Scale, metadata: {name: d}, spec: {replicas: 4}}"),
    );
    s.merge(
        "scale merged",
        &(at("apps/v1/deployments") + "/d/scale?fieldManager=five"),
        y("{spec: {replicas: 5}}"),
    );
    s.apply("after scale", &by("one"), deployment("{replicas: 1, selector: {matchLabels: {app: d}}, template: {metadata: {labels: {app: d}}, spec: {containers: [{name: a, image: 'a:1'}]}}}"));
    s.apply("without replicas", &by("one"), deployment("{selector: {matchLabels: {app: d}}, template: {metadata: {labels: {app: d}}, spec: {containers: [{name: a, image: 'a:1'}]}}}"));
    s.get("in the end", &(at("apps/v1/deployments") + "/d"));
    let services = at("services");
    s.apply("service", &format!("{services}/s?fieldManager=one"), y("{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {selector: {a: b}, ports: [{name: x, port: 80, protocol: TCP}]}}"));
    s.apply("service, other port", &format!("{services}/s?fieldManager=two"), y("{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {ports: [{name: z, port: 81, protocol: TCP}]}}"));
    s.apply(
        "service, defaulted key",
        &format!("{services}/s?fieldManager=three"),
        y("{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {ports: [{name: w, port: 82}]}}"),
    );
    s.apply("service account", &(at("serviceaccounts") + "/a?fieldManager=one"), y("{apiVersion: v1, kind: ServiceAccount, metadata: {name: a}, imagePullSecrets: [{name: p}], automountServiceAccountToken: false}"));
    s.apply("role", &(at("rbac.authorization.k8s.io/v1/roles") + "/r?fieldManager=one"), y("{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: r}, rules: [{apiGroups: [''], resources: [pods], verbs: [get]}]}"));
    s.apply("role, other rules", &(at("rbac.authorization.k8s.io/v1/roles") + "/r?fieldManager=two"), y("{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: r}, rules: [{apiGroups: [''], resources: [pods], verbs: [list]}]}"));
    s
}

pub fn kubectl() -> Script {
    let mut s = Script::new("kubectlapply");
    let manifest = |replicas: u32, image: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: d}}\nspec:\n  replicas: {replicas}\n  selector: {{matchLabels: {{app: d}}}}\n  \
             template:\n    metadata: {{labels: {{app: d}}}}\n    spec:\n      containers:\n      - {{name: a, image: '{image}', resources: {{limits: {{cpu: '1.0', memory: 1Gi}}}}}}\n"
        )
    };
    s.kubectl("apply", "apply -n {ns} -f -", &manifest(1, "a:1"));
    s.kubectl("apply again", "apply -n {ns} -f -", &manifest(1, "a:1"));
    s.kubectl("get", "get -n {ns} deploy d -o json --show-managed-fields", "");
    s.kubectl("apply a change", "apply -n {ns} -f -", &manifest(2, "a:2"));
    s.kubectl("diff", "diff -n {ns} -f - --field-manager=kubectl", &manifest(3, "a:2"));
    s.kubectl("apply, dry", "apply -n {ns} --dry-run=server -f - -o json", &manifest(3, "a:2"));
    s.kubectl("server-side over client-side", "apply -n {ns} --server-side -f -", &manifest(4, "a:4"));
    s.kubectl("get after server-side", "get -n {ns} deploy d -o json --show-managed-fields", "");
    s.kubectl(
        "server-side, other manager",
        "apply -n {ns} --server-side --field-manager=other -f -",
        &manifest(5, "a:5"),
    );
    s.kubectl(
        "server-side, forced",
        "apply -n {ns} --server-side --field-manager=other --force-conflicts -f -",
        &manifest(5, "a:5"),
    );
    s.kubectl("get after force", "get -n {ns} deploy d -o json --show-managed-fields", "");
    s.kubectl("client-side over server-side", "apply -n {ns} -f -", &manifest(6, "a:6"));
    s.kubectl("get in the end", "get -n {ns} deploy d -o json --show-managed-fields", "");
    s.kubectl("last applied", "apply view-last-applied -n {ns} deploy d", "");
    s.kubectl("replace", "replace -n {ns} -f -", &manifest(7, "a:7"));
    s.kubectl("apply over a replace", "apply -n {ns} -f -", &manifest(8, "a:7"));
    s.kubectl("create", "create -n {ns} -f -", &manifest(1, "a:1"));
    let both = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one, labels: {set: x}}\ndata: {a: b}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: two, labels: {set: x}}\n";
    let one = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one, labels: {set: x}}\ndata: {a: b}\n";
    s.kubectl("apply two", "apply -n {ns} -f -", both);
    s.kubectl("prune", "apply -n {ns} --prune -l set=x --prune-allowlist=core/v1/ConfigMap -f -", one);
    s.kubectl("apply a list", "apply -n {ns} -f -", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: three}}\n- {apiVersion: v1, kind: Secret, metadata: {name: four}, stringData: {p: q}}\n");
    s.kubectl("secret", "get -n {ns} secret four -o json --show-managed-fields", "");
    s.kubectl(
        "server-side new",
        "apply -n {ns} --server-side -f -",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: five}\ndata: {a: b}\n",
    );
    s.kubectl("get five", "get -n {ns} cm five -o yaml --show-managed-fields", "");
    s
}
