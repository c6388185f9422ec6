//! The API as people meet it: the real kubectl, where one of 1.27 or newer is on the `PATH`.

#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests")]

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use plimsoll_devcluster::{DevCluster, DevClusterConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{ChildStdout, Command};

const CRD: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.test.plimsoll.dev}
spec:
  group: test.plimsoll.dev
  scope: Namespaced
  names: {plural: boats, singular: boat, kind: Boat, listKind: BoatList, shortNames: [bo], categories: [fleet]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.crew, statusReplicasPath: .status.aboard}
    additionalPrinterColumns:
    - {name: Crew, type: integer, jsonPath: .spec.crew}
    - {name: Port, type: string, jsonPath: .spec.port, priority: 1}
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
    schema:
      openAPIV3Schema:
        type: object
        description: A boat is what floats.
        properties:
          spec:
            type: object
            description: What the boat should be.
            x-kubernetes-validations:
            - {rule: self.crew <= 10, message: a boat holds ten}
            properties:
              crew: {type: integer, default: 1, description: How many sail her.}
              port: {type: string}
              cargo:
                type: object
                properties: {tons: {type: integer}}
          status:
            type: object
            properties:
              aboard: {type: integer}
              conditions:
                type: array
                items:
                  type: object
                  properties: {type: {type: string}, status: {type: string}}
";

struct World {
    cluster: DevCluster,
    home: tempfile::TempDir,
}

/// A cluster and a home for kubectl; `None`, with a line that says so, where there is no kubectl.
async fn world() -> Option<World> {
    let mut probe = Command::new("kubectl");
    probe.args(["version", "--client", "--output=json"]).stderr(Stdio::null());
    let minor = probe.output().await.ok().and_then(|out| {
        let version: Value = serde_json::from_slice(&out.stdout).ok()?;
        version["clientVersion"]["minor"].as_str()?.trim_end_matches('+').parse::<u32>().ok()
    });
    // Older ones read OpenAPI v2 as protobuf only.
    if minor.is_none_or(|minor| minor < 27) {
        println!("skipped: no kubectl 1.27 or newer on the PATH");
        return None;
    }
    let cluster = DevCluster::start(DevClusterConfig::default()).await.unwrap();
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("config"), cluster.kubeconfig_yaml()).unwrap();
    let world = World { cluster, home };
    world.ok_in(&["apply", "-f", "-"], CRD).await;
    Some(world)
}

impl World {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command
            .args(args)
            .env("KUBECONFIG", self.home.path().join("config"))
            .env("HOME", self.home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, args: &[&str], input: &str, editor: Option<&Path>) -> (bool, String) {
        let mut command = self.command(args);
        if let Some(editor) = editor {
            command.env("KUBE_EDITOR", editor);
        }
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
        let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await;
        let output = output.unwrap_or_else(|_| panic!("kubectl {args:?} never ended")).unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    async fn ok_in(&self, args: &[&str], input: &str) -> String {
        let (success, text) = self.run(args, input, None).await;
        assert!(success, "kubectl {args:?}: {text}");
        text
    }

    async fn ok(&self, line: &str) -> String {
        self.ok_in(&line.split(' ').collect::<Vec<_>>(), "").await
    }

    async fn fails(&self, args: &[&str], input: &str) -> String {
        let (success, text) = self.run(args, input, None).await;
        assert!(!success, "kubectl {args:?} succeeded: {text}");
        text
    }

    fn boats(&self) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk("test.plimsoll.dev", "v1", "Boat"),
            "boats",
        );
        Api::default_namespaced_with(self.cluster.client(), &resource)
    }
}

fn boat(crew: i64) -> String {
    json!({"apiVersion": "test.plimsoll.dev/v1", "kind": "Boat", "metadata": {"name": "ann"}, "spec": {"crew": crew, "port": "Hull"}})
        .to_string()
}

async fn next_line(lines: &mut Lines<BufReader<ChildStdout>>) -> String {
    let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await;
    line.expect("a line in time").unwrap().expect("a line before the end")
}

#[track_caller]
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}

#[tokio::test]
async fn custom_resources_are_applied_shown_and_edited() {
    let Some(w) = world().await else { return };
    has(&w.ok_in(&["apply", "-f", "-"], &boat(3)).await, &["boat.test.plimsoll.dev/ann created"]);
    has(&w.ok_in(&["apply", "-f", "-"], &boat(3)).await, &["ann unchanged"]);
    has(&w.fails(&["diff", "-f", "-"], &boat(4)).await, &["-  crew: 3", "+  crew: 4"]);
    has(&w.ok_in(&["apply", "-f", "-"], &boat(4)).await, &["ann configured"]);
    let table = w.ok("get bo").await;
    has(&table, &["NAME   CREW   AGE", "ann    4"]);
    has(&w.ok("get boats -o wide").await, &["NAME   CREW   PORT   AGE", "Hull"]);
    has(&w.ok("get fleet -A").await, &["NAMESPACE   NAME   CREW   AGE"]);
    has(&w.ok("get boat ann -o yaml").await, &["kind: Boat", "crew: 4", "last-applied-configuration"]);
    has(&w.ok("get boat ann -o jsonpath={.spec.port}").await, &["Hull"]);
    let refused = w.fails(&["apply", "-f", "-"], &boat(11)).await;
    has(&refused, &["The Boat \"ann\" is invalid", "a boat holds ten"]);
    let mut misspelt: Value = serde_json::from_str(&boat(4)).unwrap();
    misspelt["spec"]["crw"] = 5.into();
    has(
        &w.fails(&["apply", "-f", "-"], &misspelt.to_string()).await,
        &["strict decoding error: unknown field \"spec.crw\""],
    );
    // What kubectl itself applied before is no conflict for it; it is for another manager.
    let other = ["apply", "--server-side", "--field-manager=other", "-f", "-"];
    let conflict = w.fails(&other, &boat(5)).await;
    has(&conflict, &["Apply failed with 1 conflict", ".spec.crew"]);
    let forced = w.ok_in(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &boat(5)).await;
    has(&forced, &["ann serverside-applied"]);
    has(&w.ok("scale boat ann --replicas=6").await, &["ann scaled"]);
    has(&w.ok("label boat ann color=blue").await, &["ann labeled"]);
    has(&w.ok("annotate boat ann note=x").await, &["ann annotated"]);
    has(&w.ok("get boats -l color=blue -L color").await, &["COLOR", "blue"]);
    w.ok(r#"patch boat ann --type=merge -p {"spec":{"port":"Leith"}}"#).await;
    w.ok(r#"patch boat ann --type=json -p [{"op":"replace","path":"/spec/crew","value":7}]"#).await;
    let editor = w.home.path().join("editor");
    std::fs::write(&editor, "#!/bin/sh\nsed -i 's/crew: 7/crew: 8/' \"$1\"\n").unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&editor, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (success, text) = w.run(&["edit", "boat", "ann"], "", Some(&editor)).await;
    assert!(success, "{text}");
    assert_eq!(w.ok("get boat ann -o jsonpath={.spec.crew},{.spec.port}").await, "8,Leith");
    has(&w.ok("describe boat ann").await, &["Name:         ann", "Crew:  8"]);
}

#[tokio::test]
async fn kubectl_waits_watches_and_deletes() {
    let Some(w) = world().await else { return };
    w.ok_in(&["apply", "-f", "-"], &boat(3)).await;
    let boats = w.boats();
    let ready = async {
        let status = Patch::Merge(json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}));
        boats.patch_status("ann", &PatchParams::default(), &status).await.unwrap();
    };
    let (waited, ()) = tokio::join!(w.ok("wait --for=condition=Ready boat/ann --timeout=50s"), ready);
    has(&waited, &["condition met"]);
    let hold = Patch::Merge(json!({"metadata": {"finalizers": ["test.plimsoll.dev/hold"]}}));
    boats.patch("ann", &PatchParams::default(), &hold).await.unwrap();
    let release = async {
        let marked =
            kube::runtime::wait::await_condition(boats.clone(), "ann", |b: Option<&DynamicObject>| {
                b.is_some_and(|b| b.metadata.deletion_timestamp.is_some())
            });
        marked.await.unwrap();
        let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        boats.patch("ann", &PatchParams::default(), &free).await.unwrap();
    };
    let mut watch = w.command(&["get", "boats", "-w", "--output-watch-events"]).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    while !seen.iter().any(|line: &String| line.starts_with("ADDED")) {
        seen.push(next_line(&mut lines).await);
    }
    let (deleted, waited, ()) =
        tokio::join!(w.ok("delete boat ann"), w.ok("wait --for=delete boat/ann --timeout=50s"), release,);
    has(&deleted, &["boat.test.plimsoll.dev \"ann\" deleted"]);
    has(&waited, &[""]);
    while !seen.iter().any(|line| line.starts_with("DELETED")) {
        seen.push(next_line(&mut lines).await);
    }
    has(
        &seen.join("\n"),
        &[
            "EVENT      NAME   CREW   AGE",
            "ADDED      ann    3",
            "MODIFIED   ann    3",
            "DELETED    ann    3",
        ],
    );
    watch.kill().await.unwrap();
    has(
        &w.fails(&["get", "boat", "ann"], "").await,
        &["Error from server (NotFound): boats.test.plimsoll.dev \"ann\" not found"],
    );
    has(&w.ok("delete boat ann --ignore-not-found").await, &[""]);
}

#[tokio::test]
async fn documents_describe_what_is_served() {
    let Some(w) = world().await else { return };
    has(
        &w.ok("api-resources").await,
        &["boats", "test.plimsoll.dev/v1", "configmaps", "deployments", "events.k8s.io/v1"],
    );
    has(&w.ok("api-versions").await, &["test.plimsoll.dev/v1", "apps/v1"]);
    has(
        &w.ok("explain boat.spec").await,
        &["KIND:       Boat", "What the boat should be.", "How many sail her."],
    );
    has(&w.ok("explain boat --recursive").await, &["cargo", "tons", "conditions"]);
    has(&w.ok("explain pod.spec.containers.image").await, &["FIELD: image <string>"]);
    has(&w.ok("version").await, &["Server Version: v1.35.4"]);
    has(&w.ok("auth can-i create pods").await, &["yes"]);
    has(&w.ok("cluster-info").await, &["is running at"]);
}

#[tokio::test]
async fn built_in_kinds_work() {
    let Some(w) = world().await else { return };
    has(&w.ok("create namespace team").await, &["namespace/team created"]);
    w.ok("create configmap m -n team --from-literal=a=1").await;
    w.ok("create secret generic s -n team --from-literal=p=q").await;
    has(&w.ok("get cm/m secret/s -n team").await, &["configmap/m   1", "secret/s   Opaque   1"]);
    has(&w.ok("describe secret s -n team").await, &["p:  1 bytes"]);
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 2,
        "selector": {"matchLabels": {"app": "d"}}, "template": {"metadata": {"labels": {"app": "d"}},
            "spec": {"containers": [{"name": "x", "image": "x"}]}}}});
    w.ok_in(&["create", "-f", "-"], &deployment.to_string()).await;
    has(&w.ok("scale deployment d --replicas=3").await, &["deployment.apps/d scaled"]);
    w.ok(r#"patch deployment d -p {"spec":{"template":{"spec":{"containers":[{"name":"x","env":[{"name":"A","value":"b"}]}]}}}}"#).await;
    has(&w.ok("get deployment d -o jsonpath={.spec.replicas},{.spec.template.spec.containers[0].image},{.spec.template.spec.containers[0].env[0].name}").await, &["3,x,A"]);
    w.ok("run p --image=x").await;
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "p.1", "namespace": "default"}, "reason": "Testing", "message": "all is well", "type": "Normal",
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default", "uid": w.ok("get pod p -o jsonpath={.metadata.uid}").await}});
    w.ok_in(&["create", "-f", "-"], &event.to_string()).await;
    has(&w.ok("describe pod p").await, &["Status:", "Pending", "Events:", "Testing", "all is well"]);
    has(&w.ok("events").await, &["Testing", "Pod/p", "all is well"]);
    assert_eq!(w.ok("logs p").await, "", "no host, no log: no error, as on a real cluster");
    has(&w.fails(&["exec", "p", "--", "ls"], "").await, &["pods are simulated"]);
    has(&w.ok("delete pod p").await, &["pod \"p\" deleted"]);
    has(&w.ok("delete namespace team").await, &["namespace \"team\" deleted"]);
    has(&w.fails(&["get", "ns", "team"], "").await, &["not found"]);
    has(&w.fails(&["delete", "ns", "default"], "").await, &["this namespace may not be deleted"]);
}

/// Objects made from flags travel as protobuf since kubectl 1.32.
#[tokio::test]
async fn generators_work() {
    let Some(w) = world().await else { return };
    has(
        &w.ok("create deployment web --image=nginx --replicas=2 --port=80").await,
        &["deployment.apps/web created"],
    );
    let spec = "{.spec.replicas} {.spec.strategy.type} {.spec.template.spec.containers[0].ports[0]}";
    let path = format!("get deployment web -o jsonpath={}", spec.replace(' ', ","));
    has(&w.ok(&path).await, &[r#"2,RollingUpdate,{"containerPort":80,"protocol":"TCP"}"#]);
    has(&w.ok("expose deployment web --port=80").await, &["service/web exposed"]);
    has(&w.ok("create job once --image=busybox -- echo hi").await, &["job.batch/once created"]);
    has(&w.ok("get job once").await, &["once   Running   0/1"]);
    has(
        &w.ok("create role r --verb=get --resource=pods").await,
        &["role.rbac.authorization.k8s.io/r created"],
    );
    has(&w.ok("create pdb half --selector=app=web --max-unavailable=50%").await, &["created"]);
    has(&w.ok("get pdb half").await, &["half   N/A             50%"]);
    has(&w.ok("create priorityclass none --value=0").await, &["created"]);
    has(&w.ok("create token default").await, &["."]);
    has(&w.ok("auth can-i --list").await, &["*.*"]);
    has(&w.ok("auth whoami").await, &["kubernetes-admin"]);
    has(&w.ok("set image deployment/web nginx=nginx:2").await, &["image updated"]);
    has(&w.ok("get all").await, &["deployment.apps/web", "service/web", "job.batch/once"]);
    has(&w.fails(&["top", "nodes"], "").await, &["Metrics API not available"]);
}
