{{- /* The name that a component's certificate has, whatever address it is called by. Takes (list root component). */ -}}
{{- define "plimsoll.tls.name" -}}
{{- $root := index . 0 -}}
{{ include "plimsoll.fullname" $root }}-{{ index . 1 }}.{{ $root.Release.Namespace }}.svc
{{- end -}}

{{- /* All names in a component's certificate. Takes (list root component). */ -}}
{{- define "plimsoll.tls.names" -}}
{{- $root := index . 0 -}}
{{- $service := printf "%s-%s" (include "plimsoll.fullname" $root) (index . 1) -}}
{{- $ns := $root.Release.Namespace -}}
{{- list $service (printf "%s.%s" $service $ns) (printf "%s.%s.svc" $service $ns) (printf "%s.%s.svc.cluster.local" $service $ns) | toJson -}}
{{- end -}}

{{- /* The Secret with a component's certificate. Takes (list root component). */ -}}
{{- define "plimsoll.tls.secret" -}}
{{- $root := index . 0 }}{{ $v := $root.Values.tls -}}
{{- if eq $v.mode "existing" -}}
{{- if not $v.existing.secretName -}}
{{- fail "tls.mode is existing and tls.existing.secretName is empty: name a Secret with ca.crt, tls.crt and tls.key" -}}
{{- end -}}
{{- $v.existing.secretName -}}
{{- else -}}
{{- $word := ternary "cert" "tls" (eq $v.mode "certManager") -}}
{{ include "plimsoll.fullname" $root }}-{{ $word }}-{{ index . 1 }}
{{- end -}}
{{- end -}}

{{- /* Whether parts with TLS put up with parts without: true, or nothing. With `auto`, as long as the cluster has parts of
       this release that speak no TLS, or that were made to put up with such and are not yet all in place. */ -}}
{{- define "plimsoll.tls.permissive" -}}
{{- $v := .Values.tls -}}
{{- if eq $v.mode "none" -}}
{{- else if eq $v.plaintext "allow" -}}
true
{{- else if eq $v.plaintext "auto" -}}
{{- $permissive := false -}}
{{- $name := include "plimsoll.fullname" . -}}
{{- range $component, $kind := dict "operator" "Deployment" "scheduler" "Deployment" "gateway" "Deployment" "agent" "DaemonSet" -}}
{{- $found := lookup "apps/v1" $kind $.Release.Namespace (printf "%s-%s" $name $component) -}}
{{- if $found -}}
{{- $speaks := false }}{{ $lenient := false -}}
{{- range (first $found.spec.template.spec.containers).env -}}
{{- if eq .name "PLIMSOLL_TLS_DIR" }}{{ $speaks = true }}{{ end -}}
{{- if eq .name "PLIMSOLL_TLS_PERMISSIVE" }}{{ $lenient = true }}{{ end -}}
{{- end -}}
{{- if not $speaks -}}
{{- $permissive = true -}}
{{- else if $lenient -}}
{{- $status := default dict $found.status -}}
{{- /* Without a controller that reports there are no old pods that could be waited for. */ -}}
{{- if $status.observedGeneration -}}
{{- $seen := eq (int64 $status.observedGeneration) (int64 $found.metadata.generation) -}}
{{- $all := ternary (int $status.desiredNumberScheduled) (max (int $status.replicas) (int $found.spec.replicas)) (eq $kind "DaemonSet") -}}
{{- $new := ternary (int $status.updatedNumberScheduled) (int $status.updatedReplicas) (eq $kind "DaemonSet") -}}
{{- if not (and $seen (eq (int $all) $new)) }}{{ $permissive = true }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $permissive }}true{{ end -}}
{{- end -}}
{{- end -}}

{{- /* Environment by which a component knows of TLS; `kubectl exec` into a pod has it too. Takes (list root component). */ -}}
{{- define "plimsoll.tls.env" -}}
{{- $root := index . 0 }}{{ $component := index . 1 -}}
{{- if ne $root.Values.tls.mode "none" -}}
- name: PLIMSOLL_TLS_DIR
  value: /etc/plimsoll/tls
- name: PLIMSOLL_TLS_SCHEDULER_NAME
  value: {{ include "plimsoll.tls.name" (list $root "scheduler") }}
{{- if has $component (list "agent" "gateway") }}
- name: PLIMSOLL_TLS_AGENT_NAME
  value: {{ include "plimsoll.tls.name" (list $root "agent") }}
{{- end }}
{{- $callers := dict "scheduler" (list "operator" "scheduler" "agent" "gateway") "agent" (list "agent" "gateway") "gateway" (list "agent" "gateway") }}
{{- with index $callers $component }}
{{- $names := list }}
{{- range . }}
{{- $names = append $names (include "plimsoll.tls.name" (list $root .)) }}
{{- end }}
- name: PLIMSOLL_TLS_ALLOW
  value: {{ join "," $names }}
{{- end }}
{{- if eq $component "scheduler" }}
# Who may say what the cluster has. Schedulers hand on what an operator says.
- name: PLIMSOLL_TLS_OPERATORS
  value: {{ include "plimsoll.tls.name" (list $root "operator") }},{{ include "plimsoll.tls.name" (list $root "scheduler") }}
{{- end }}
{{- if include "plimsoll.tls.permissive" $root }}
- name: PLIMSOLL_TLS_PERMISSIVE
  value: "true"
{{- end }}
{{- end -}}
{{- end -}}

{{- /* Where a component finds its certificate. Takes (list root). */ -}}
{{- define "plimsoll.tls.mount" -}}
{{- if ne (index . 0).Values.tls.mode "none" -}}
- name: tls
  mountPath: /etc/plimsoll/tls
  readOnly: true
{{- end -}}
{{- end -}}

{{- /* Its volume. Takes (list root component). */ -}}
{{- define "plimsoll.tls.volume" -}}
{{- $root := index . 0 -}}
{{- if ne $root.Values.tls.mode "none" -}}
- name: tls
  secret:
    secretName: {{ include "plimsoll.tls.secret" . }}
    # For the pod's group, which is its user's.
    defaultMode: 0440
{{- end -}}
{{- end -}}
