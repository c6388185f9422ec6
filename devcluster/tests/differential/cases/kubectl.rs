//! kubectl as people use it.

use crate::script::Script;

const MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, labels: {x: y}}\ndata: {k: v}\n";

pub fn verbs() -> Script {
    let mut s = Script::new("kubectl");
    s.kubectl("create", "create -n {ns} -f -", MAP);
    for (name, args) in [
        ("get", "get cm a -n {ns}"),
        ("get yaml", "get cm a -n {ns} -o yaml"),
        ("get json", "get cm a -n {ns} -o json"),
        ("get name", "get cm -n {ns} -o name"),
        ("get labels", "get cm -n {ns} --show-labels"),
        ("get label column", "get cm -n {ns} -L x"),
        ("get jsonpath", "get cm a -n {ns} -o jsonpath={.data.k}"),
        ("get columns", "get cm -n {ns} -o custom-columns=N:.metadata.name,D:.data.k"),
        ("get sorted", "get cm -n {ns} --sort-by=.metadata.name"),
        ("get chunks", "get cm -n {ns} --chunk-size=1"),
        ("get nothing", "get cm nothing -n {ns}"),
        ("get two", "get cm/a cm/nothing -n {ns}"),
        ("get none", "get pods -n {ns}"),
        ("get unknown", "get boxes -n {ns}"),
        ("get in no namespace", "get cm -n nowhere"),
        ("get ignored", "get cm nothing -n {ns} --ignore-not-found"),
        ("get all", "get all -n {ns}"),
        ("describe", "describe cm a -n {ns}"),
        ("describe nothing", "describe cm nothing -n {ns}"),
        ("label", "label cm a -n {ns} n=m"),
        ("label again", "label cm a -n {ns} n=m"),
        ("label, refused", "label cm a -n {ns} n=o"),
        ("label, overwritten", "label cm a -n {ns} n=o --overwrite"),
        ("label, removed", "label cm a -n {ns} n-"),
        ("label, bad", "label cm a -n {ns} n=a/b"),
        ("annotate", "annotate cm a -n {ns} n=m"),
        ("patch", "patch cm a -n {ns} -p {\"data\":{\"k\":\"w\"}}"),
        ("patch again", "patch cm a -n {ns} -p {\"data\":{\"k\":\"w\"}}"),
        ("patch merge", "patch cm a -n {ns} --type=merge -p {\"data\":{\"k\":null}}"),
        (
            "patch json",
            "patch cm a -n {ns} --type=json -p [{\"op\":\"add\",\"path\":\"/data\",\"value\":{\"z\":\"1\"}}]",
        ),
        ("patch bad json", "patch cm a -n {ns} --type=json -p [{\"op\":\"remove\",\"path\":\"/nothing\"}]"),
        ("patch, bad type", "patch cm a -n {ns} -p {\"data\":{\"k\":1}}"),
        ("patch nothing", "patch cm nothing -n {ns} -p {}"),
        ("create again", "create cm a -n {ns}"),
        ("set data", "set env deploy/nothing A=b -n {ns}"),
        ("wait", "wait cm/a -n {ns} --for=jsonpath={.data.z}=1 --timeout=5s"),
        ("wait in vain", "wait cm/a -n {ns} --for=jsonpath={.data.z}=2 --timeout=1s"),
        ("delete, dry", "delete cm a -n {ns} --dry-run=server"),
        ("delete", "delete cm a -n {ns}"),
        ("delete again", "delete cm a -n {ns}"),
        ("delete all", "delete cm --all -n {ns}"),
        ("events", "events -n {ns}"),
        ("get events", "get events -n {ns}"),
        ("namespaces", "get ns {ns}"),
        ("describe namespace", "describe ns {ns}"),
        ("api of a group", "api-resources --api-group=apps --no-headers"),
        ("top", "top pods -n {ns}"),
        ("exec of nothing", "exec nothing -n {ns} -- ls"),
        ("logs of nothing", "logs nothing -n {ns}"),
        ("cordon nothing", "cordon nothing"),
        ("drain nothing", "drain nothing"),
        ("rollout of nothing", "rollout status deploy/nothing -n {ns}"),
        ("scale nothing", "scale deploy/nothing -n {ns} --replicas=1"),
    ] {
        s.kubectl(name, args, "");
    }
    s
}

pub fn generators() -> Script {
    let mut s = Script::new("generators");
    for (name, args) in [
        ("deployment", "create deployment web --image=nginx --replicas=2 --port=80 -n {ns} -o json"),
        ("expose", "expose deployment web --port=80 --target-port=8080 -n {ns} -o json"),
        ("run", "run p --image=x --restart=Never --env=A=b -n {ns} -o json -- sleep 5"),
        ("job", "create job once --image=busybox -n {ns} -o json -- echo hi"),
        ("cron job", "create cronjob often --image=busybox --schedule=@hourly -n {ns} -o json"),
        ("role", "create role r --verb=get,list --resource=pods,deployments.apps -n {ns} -o json"),
        ("role binding", "create rolebinding rb --role=r --serviceaccount={ns}:default -n {ns} -o json"),
        ("budget", "create pdb half --selector=app=web --max-unavailable=50% -n {ns} -o json"),
        ("secret", "create secret generic s --from-literal=p=q -n {ns} -o json"),
        (
            "docker secret",
            "create secret docker-registry dr --docker-server=s --docker-username=u --docker-password=p -n {ns} -o json",
        ),
        ("config map", "create configmap m --from-literal=a=1 -n {ns} -o json"),
        ("account", "create serviceaccount a -n {ns} -o json"),
        ("quota", "create quota q --hard=pods=5,cpu=1.50 -n {ns} -o json"),
        ("service", "create service clusterip c --tcp=80:8080 -n {ns} -o json"),
        ("headless", "create service clusterip h --clusterip=None -n {ns} -o json"),
        ("external", "create service externalname e --external-name=a.b -n {ns} -o json"),
        ("ingress", "create ingress i --rule=a.b/x*=web:80 -n {ns} -o json"),
        ("image", "set image deployment/web nginx=nginx:2 -n {ns} -o json"),
        ("env", "set env deployment/web A=b -n {ns} -o json"),
        ("resources", "set resources deployment/web --limits=cpu=1.0,memory=512Mi -n {ns} -o json"),
        ("account of", "set serviceaccount deployment/web a -n {ns} -o json"),
        ("selector", "set selector service web x=y -n {ns} -o json"),
        ("all", "get all -n {ns}"),
        ("describe deployment", "describe deployment web -n {ns}"),
        ("describe pod", "describe pod p -n {ns}"),
        ("describe service", "describe service web -n {ns}"),
        ("describe role", "describe role r -n {ns}"),
        ("describe quota", "describe quota q -n {ns}"),
        ("dry", "create deployment other --image=nginx -n {ns} --dry-run=server -o yaml"),
        ("delete all", "delete deployment,service,job --all -n {ns}"),
        ("remove namespace", "delete namespace {ns} --wait=false"),
    ] {
        s.kubectl(name, args, "");
    }
    s
}

pub fn complaints() -> Script {
    let mut s = Script::new("complaints");
    for (name, manifest) in [
        (
            "unknown field",
            "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: i, imagee: j}]}}",
        ),
        (
            "missing image",
            "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c}]}}",
        ),
        (
            "wrong type",
            "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: i, ports: [{containerPort: x}]}]}}",
        ),
        (
            "wrong selector",
            "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}, spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: c, image: i}]}}}}",
        ),
        ("unknown kind", "{apiVersion: v1, kind: Box, metadata: {name: b}}"),
        ("unknown version", "{apiVersion: apps/v9, kind: Deployment, metadata: {name: b}}"),
        ("no kind", "{apiVersion: v1, metadata: {name: b}}"),
        ("no name", "{apiVersion: v1, kind: ConfigMap, metadata: {}}"),
        ("bad name", "{apiVersion: v1, kind: ConfigMap, metadata: {name: A_b}}"),
        ("other namespace", "{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: default}}"),
        (
            "bad quantity",
            "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: i, resources: {limits: {cpu: lots}}}]}}",
        ),
        ("bad secret", "{apiVersion: v1, kind: Secret, metadata: {name: s}, data: {a: '*'}}"),
        ("number in data", "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {a: 1}}"),
        ("label number", "{apiVersion: v1, kind: ConfigMap, metadata: {name: a, labels: {a: 1}}}"),
        ("null", "{apiVersion: v1, kind: ConfigMap, metadata: {name: nulls}, data: null}"),
    ] {
        for (how, args) in [
            ("apply", "apply -n {ns} -f -"),
            ("apply, unchecked", "apply -n {ns} --validate=ignore -f -"),
            ("server-side", "apply -n {ns} --server-side -f -"),
            ("create", "create -n {ns} -f -"),
        ] {
            s.kubectl(&format!("{name}, {how}"), args, manifest);
        }
    }
    s
}
