//! Objects of which nothing is set, as the API server's own types write them: fields that are there whatever is in them.

use serde_json::{Value, json};

/// What a new object of a built-in kind is compared with to tell what its writer set: fields of this are nobody's.
pub fn object(kind: &str) -> Value {
    let template = || json!({"metadata": {}, "spec": {"containers": null}});
    match kind {
        "Pod" => json!({"spec": {"containers": null}, "status": {}}),
        "PodTemplate" => json!({"template": template()}),
        "ReplicationController" => json!({"spec": {}, "status": {"replicas": 0}}),
        "ReplicaSet" => {
            json!({"spec": {"selector": null, "template": template()}, "status": {"replicas": 0}})
        }
        "Deployment" => {
            json!({"spec": {"selector": null, "template": template(), "strategy": {}}, "status": {}})
        }
        "StatefulSet" => json!({
            "spec": {"selector": null, "template": template(), "serviceName": "", "updateStrategy": {}},
            "status": {"replicas": 0, "availableReplicas": 0},
        }),
        "DaemonSet" => json!({
            "spec": {"selector": null, "template": template(), "updateStrategy": {}},
            "status": {"currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0},
        }),
        "Job" => json!({"spec": {"template": template()}, "status": {}}),
        "CronJob" => json!({
            "spec": {"schedule": "", "jobTemplate": {"metadata": {}, "spec": {"template": template()}}}, "status": {},
        }),
        "Service" => json!({"spec": {}, "status": {"loadBalancer": {}}}),
        "Ingress" => json!({"spec": {}, "status": {"loadBalancer": {}}}),
        "NetworkPolicy" => json!({"spec": {"podSelector": {}}}),
        "PersistentVolumeClaim" => json!({"spec": {"resources": {}}, "status": {}}),
        "HorizontalPodAutoscaler" => json!({
            "spec": {"scaleTargetRef": {"kind": "", "name": ""}, "maxReplicas": 0},
            "status": {"desiredReplicas": 0, "currentMetrics": null},
        }),
        "PodDisruptionBudget" => json!({
            "spec": {},
            "status": {"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0},
        }),
        "VolumeAttachment" => json!({
            "spec": {"attacher": "", "nodeName": "", "source": {}}, "status": {"attached": false},
        }),
        "CSINode" => json!({"spec": {"drivers": null}}),
        "CustomResourceDefinition" => json!({"spec": {"names": {}}}),
        "Node" => json!({
            "spec": {},
            "status": {
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
                "nodeInfo": {
                    "machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "", "osImage": "",
                    "containerRuntimeVersion": "", "kubeletVersion": "", "kubeProxyVersion": "", "operatingSystem": "",
                    "architecture": "",
                },
            },
        }),
        "ResourceQuota" | "PersistentVolume" | "Namespace" | "APIService" => {
            json!({"spec": {}, "status": {}})
        }
        "DeviceClass" | "IPAddress" | "ValidatingAdmissionPolicyBinding" => json!({"spec": {}}),
        "ServiceCIDR" | "ValidatingAdmissionPolicy" => json!({"spec": {}, "status": {}}),
        "ResourceSlice" => json!({
            "spec": {"driver": "", "pool": {"name": "", "generation": 0, "resourceSliceCount": 0}},
        }),
        "ResourceClaim" => json!({"spec": {"devices": {}}, "status": {}}),
        "ResourceClaimTemplate" => json!({"spec": {"metadata": {}, "spec": {"devices": {}}}}),
        "PriorityLevelConfiguration" => json!({"spec": {"type": ""}, "status": {}}),
        "FlowSchema" => json!({
            "spec": {"priorityLevelConfiguration": {"name": ""}, "matchingPrecedence": 0}, "status": {},
        }),
        "CertificateSigningRequest" => json!({"spec": {"request": null, "signerName": ""}, "status": {}}),
        "TokenReview" => json!({"spec": {}, "status": {"user": {}}}),
        "LimitRange" => json!({"spec": {"limits": null}}),
        "Lease" | "CSIDriver" | "IngressClass" => json!({"spec": {}}),
        "Role" | "ClusterRole" => json!({"rules": null}),
        "RoleBinding" | "ClusterRoleBinding" => json!({"roleRef": {"apiGroup": "", "kind": "", "name": ""}}),
        "EndpointSlice" => json!({"addressType": "", "endpoints": null, "ports": null}),
        "TokenRequest" => json!({
            "spec": {"audiences": null, "expirationSeconds": null, "boundObjectRef": null},
            "status": {"token": "", "expirationTimestamp": null},
        }),
        "SelfSubjectAccessReview" | "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            json!({"spec": {}, "status": {"allowed": false}})
        }
        "Event" => json!({
            "involvedObject": {}, "source": {}, "firstTimestamp": null, "lastTimestamp": null, "eventTime": null,
            "reportingComponent": "", "reportingInstance": "",
        }),
        _ => json!({}),
    }
}
