{{- define "plimsoll.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* Prefix of every name; 40 characters leave room for the longest suffix. */ -}}
{{- define "plimsoll.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "plimsoll.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Labels that selectors use: they never change in the life of a release, so no version is among them.
       Takes (list root component). */ -}}
{{- define "plimsoll.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "plimsoll.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "plimsoll.labels" -}}
{{- $root := index . 0 -}}
{{ include "plimsoll.selector" . }}
app.kubernetes.io/part-of: plimsoll
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "plimsoll.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ printf "%s@%s" .repository .digest }}
{{- else -}}
{{ printf "%s:%s" .repository (default (printf "v%s" $.Chart.AppVersion) .tag) }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "plimsoll.operatorServiceAccount" -}}
{{- $made := ternary (printf "%s-operator" (include "plimsoll.fullname" .)) "default" .Values.serviceAccount.create -}}
{{- default $made .Values.serviceAccount.operatorName -}}
{{- end -}}

{{- define "plimsoll.serviceAccount" -}}
{{- $made := ternary (include "plimsoll.fullname" .) "default" .Values.serviceAccount.create -}}
{{- default $made .Values.serviceAccount.name -}}
{{- end -}}

{{- define "plimsoll.scheduler.url" -}}
http://{{ include "plimsoll.fullname" . }}-scheduler.{{ .Release.Namespace }}.svc:9090
{{- end -}}

{{- /* The schedulers' etcd, members separated by commas; nothing if their store is a file. Values that contradict each other are refused. */ -}}
{{- define "plimsoll.etcd.endpoints" -}}
{{- $v := .Values.etcd -}}
{{- if eq .Values.scheduler.store "file" -}}
{{- if gt (int .Values.scheduler.replicas) 1 -}}
{{- fail "scheduler.replicas is more than 1 with scheduler.store file: schedulers share their state in an etcd; set scheduler.store to etcd, and etcd.enabled or etcd.endpoints" -}}
{{- end -}}
{{- if or $v.enabled $v.endpoints -}}
{{- fail "there is an etcd that nobody uses: set scheduler.store to etcd, or leave etcd.enabled and etcd.endpoints out" -}}
{{- end -}}
{{- else if $v.enabled -}}
{{- if $v.endpoints -}}
{{- fail "etcd.enabled and etcd.endpoints are both set: run an etcd with the chart or name one that exists" -}}
{{- end -}}
{{- if and (not $v.persistence.enabled) (gt (int $v.replicas) 1) -}}
{{- fail "etcd.persistence.enabled is false with several members: one that lost its data cannot come back by itself; set etcd.replicas to 1 or leave persistence on" -}}
{{- end -}}
{{- $name := printf "%s-etcd" (include "plimsoll.fullname" .) -}}
{{- $members := list -}}
{{- range until (int $v.replicas) -}}
{{- $members = append $members (printf "http://%s-%d.%s.%s.svc:2379" $name . $name $.Release.Namespace) -}}
{{- end -}}
{{- join "," $members -}}
{{- else -}}
{{- if not $v.endpoints -}}
{{- fail "scheduler.store is etcd and there is none: set etcd.endpoints to one that exists, or etcd.enabled to run one with the chart" -}}
{{- end -}}
{{- join "," $v.endpoints -}}
{{- end -}}
{{- end -}}

{{- /* metadata of a pod template. Takes (list root component values). */ -}}
{{- define "plimsoll.podMetadata" -}}
{{- $root := index . 0 }}{{ $component := index . 1 }}{{ $values := index . 2 -}}
# No version among them: a release that changes nothing of a pod restarts none.
labels:
  {{- include "plimsoll.selector" (list $root $component) | nindent 2 }}
  app.kubernetes.io/part-of: plimsoll
  {{- with $root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  kubectl.kubernetes.io/default-container: {{ $component }}
  {{- with $values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- /* What every pod has: the pod security standard "restricted", and where it may run. Takes (list root component values). */ -}}
{{- define "plimsoll.podSpec" -}}
{{- $root := index . 0 }}{{ $component := index . 1 }}{{ $values := index . 2 -}}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  - labelSelector:
      matchLabels:
        {{- include "plimsoll.selector" (list $root $component) | nindent 8 }}
    {{- toYaml (omit . "labelSelector") | nindent 4 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- /* Affinity of what has no business on GPU nodes: rather elsewhere, unless values say otherwise. Takes (list root values). */ -}}
{{- define "plimsoll.offGpuNodes" -}}
{{- $root := index . 0 }}{{ $values := index . 1 -}}
{{- if or $values.affinity $root.Values.agent.gpuNodeLabels -}}
affinity:
  {{- with $values.affinity }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- if not $values.affinity.nodeAffinity }}
  {{- with $root.Values.agent.gpuNodeLabels }}
  nodeAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        preference:
          matchExpressions:
            {{- range . }}
            - {key: {{ . }}, operator: DoesNotExist}
            {{- end }}
  {{- end }}
  {{- end }}
{{- end -}}
{{- end -}}

{{- /* The security standard "restricted", as far as a container has a say. */ -}}
{{- define "plimsoll.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* What every container has. Takes (list root component values). */ -}}
{{- define "plimsoll.container" -}}
{{- $root := index . 0 }}{{ $component := index . 1 }}{{ $values := index . 2 -}}
name: {{ $component }}
image: {{ include "plimsoll.image" $root | quote }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
securityContext:
  {{- include "plimsoll.containerSecurity" $root | nindent 2 }}
resources:
  {{- toYaml $values.resources | nindent 2 }}
{{- end -}}

{{- /* Environment of every container. Takes (list root values). */ -}}
{{- define "plimsoll.env" -}}
{{- $root := index . 0 }}{{ $values := index . 1 -}}
- name: PLIMSOLL_LOG
  value: {{ $root.Values.log.filter | quote }}
- name: PLIMSOLL_LOG_FORMAT
  value: {{ $root.Values.log.format }}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- if gt (int $values.threads) 0 }}
- name: TOKIO_WORKER_THREADS
  value: {{ int $values.threads | quote }}
{{- end }}
{{- end -}}
