//! The API as Helm meets it: the real helm, where version 3 or newer is on the `PATH`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::path::Path;
use std::process::Stdio;

use plimsoll_devcluster::{DevCluster, DevClusterConfig};
use tokio::process::Command;

const CHART: &str = "{apiVersion: v2, name: shop, version: 0.1.0}";
const VALUES: &str = "{replicas: 2, greeting: hello}";
const CRD: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gadgets.test.plimsoll.dev}
spec:
  group: test.plimsoll.dev
  scope: Namespaced
  names: {plural: gadgets, singular: gadget, kind: Gadget, listKind: GadgetList}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              size: {x-kubernetes-int-or-string: true}
              note: {type: string, nullable: true}
              free: {type: object, x-kubernetes-preserve-unknown-fields: true}
";
const TEMPLATES: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: nginx, env: [{name: A, value: {{ .Values.greeting | quote }}}, {name: B, value: "2"}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template: {metadata: {labels: {app: db}}, spec: {containers: [{name: db, image: db}]}}
  volumeClaimTemplates:
  - {metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80}, {name: metrics, port: 9090}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web}
data: {greeting: {{ .Values.greeting | quote }}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: shop}
rules: [{apiGroups: [""], resources: [pods], verbs: [get]}, {nonResourceURLs: ["/metrics"], verbs: [get]}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 50%, selector: {matchLabels: {app: web}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec: {template: {spec: {restartPolicy: Never, containers: [{name: once, image: busybox}]}}}
---
apiVersion: test.plimsoll.dev/v1
kind: Gadget
metadata: {name: web}
spec: {size: {{ .Values.replicas }}, note: null, free: {to: [say, anything]}}
"#;

async fn helm(home: &Path, args: &[&str]) -> (bool, String) {
    let output = Command::new("helm")
        .args(args)
        .env("KUBECONFIG", home.join("config"))
        .env("HOME", home)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match output.await {
        Ok(out) => {
            let said = [out.stdout, out.stderr].concat();
            (out.status.success(), String::from_utf8_lossy(&said).into_owned())
        }
        Err(error) => (false, error.to_string()),
    }
}

async fn ok(home: &Path, args: &str) -> String {
    let words: Vec<&str> = args.split(' ').collect();
    let (success, said) = helm(home, &words).await;
    assert!(success, "helm {args}: {said}");
    said
}

#[tokio::test]
async fn releases_come_change_and_go() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let (found, version) = helm(home, &["version", "--short"]).await;
    if !found || version.starts_with("v2") {
        println!("skipped: no helm on the PATH");
        return;
    }
    let cluster = DevCluster::start(DevClusterConfig::default()).await.unwrap();
    std::fs::write(home.join("config"), cluster.kubeconfig_yaml()).unwrap();
    let chart = home.join("shop");
    for (file, text) in [
        ("Chart.yaml", CHART),
        ("values.yaml", VALUES),
        ("crds/gadgets.yaml", CRD),
        ("templates/all.yaml", TEMPLATES),
    ] {
        let path = chart.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let chart = chart.to_str().unwrap();
    let deployment = || {
        let resource = plimsoll_devcluster::store::GroupResource::new("apps", "deployments");
        let key = plimsoll_devcluster::store::ObjectKey::new(resource, "team", "web");
        cluster.store().get(&key).map(|stored| {
            let spec = &stored.value["spec"];
            (spec["replicas"].as_i64(), spec["template"]["spec"]["containers"][0]["env"].clone())
        })
    };
    ok(home, &format!("install rel {chart} -n team --create-namespace")).await;
    let (replicas, env) = deployment().unwrap();
    assert_eq!((replicas, &env[0]["value"]), (Some(2), &"hello".into()));
    ok(home, &format!("upgrade rel {chart} -n team --set greeting=bye,replicas=3")).await;
    let (replicas, env) = deployment().unwrap();
    assert_eq!((replicas, &env[0]["value"], &env[1]["value"]), (Some(3), &"bye".into(), &"2".into()));
    ok(home, &format!("upgrade rel {chart} -n team --dry-run=server --set replicas=9")).await;
    assert_eq!(deployment().unwrap().0, Some(3));
    ok(home, "rollback rel 1 -n team").await;
    assert_eq!(deployment().unwrap().0, Some(2));
    assert!(ok(home, "list -A").await.contains("rel"));
    assert!(ok(home, "history rel -n team").await.contains("Rollback to 1"));
    assert!(ok(home, "status rel -n team").await.contains("STATUS: deployed"));
    ok(home, "uninstall rel -n team").await;
    assert_eq!(deployment(), None);
    cluster.shutdown().await;
}
