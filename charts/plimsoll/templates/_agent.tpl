{{- /* Whether a component has a certificate for clients. Takes (list root component). */ -}}
{{- define "plimsoll.publicTls" -}}
{{- $root := index . 0 -}}
{{- if and (eq (index . 1) "gateway") $root.Values.gateway.tlsSecretName }}true{{ end -}}
{{- end -}}

{{- /* The container of an agent: beside engines or as a gateway. Takes (list root component values). */ -}}
{{- define "plimsoll.agentContainer" -}}
{{- $root := index . 0 }}{{ $component := index . 1 }}{{ $v := index . 2 -}}
{{ include "plimsoll.container" . }}
args:
  - agent
  - --listen={{ $root.Values.listenAddress }}:8080
  - --http-listen={{ $root.Values.listenAddress }}:9091
  - --state=/var/lib/plimsoll
  {{- if and (eq $component "gateway") $v.picker.enabled }}
  - --picker-listen={{ $root.Values.listenAddress }}:{{ int $v.picker.port }}
  {{- end }}
  - --shutdown-grace-seconds={{ int $v.shutdownGraceSeconds }}
  {{- if ne $root.Values.tls.mode "none" }}
  {{- if and (eq $component "agent") $root.Values.gateway.enabled (not (include "plimsoll.tls.permissive" $root)) }}
  - --peers-only
  {{- end }}
  {{- if not $root.Values.tls.directToEngines }}
  {{- if not $root.Values.agent.enabled }}
  {{- fail "tls.directToEngines is false and agent.enabled too: there would be no way to any engine" }}
  {{- end }}
  - --no-direct
  {{- end }}
  {{- end }}
  {{- if and (eq $component "agent") $v.adapterCache.hostPath }}
  - --adapter-cache=/adapters
  - --adapter-cache-size={{ $v.adapterCache.size }}
  {{- if $v.adapterCache.credentialsSecret }}
  - --adapter-credentials=/etc/plimsoll/adapter-credentials
  {{- end }}
  {{- range $v.adapterCache.hosts }}
  - {{ printf "--adapter-host=%s" . | quote }}
  {{- end }}
  {{- end }}
  {{- range $v.extraArgs }}
  - {{ . | quote }}
  {{- end }}
env:
  {{- include "plimsoll.env" (list $root $v) | nindent 2 }}
  - name: PLIMSOLL_SCHEDULER
    value: {{ include "plimsoll.scheduler.url" $root }}
  {{- with include "plimsoll.tls.env" (list $root $component) }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- if eq (include "plimsoll.publicTls" (list $root $component)) "true" }}
  - name: PLIMSOLL_SERVE_TLS_DIR
    value: /etc/plimsoll/public
  {{- end }}
  # Where others reach it.
  - name: POD_IP
    valueFrom:
      fieldRef:
        fieldPath: status.podIP
  {{- if eq $component "agent" }}
  - name: NODE_NAME
    valueFrom:
      fieldRef:
        fieldPath: spec.nodeName
  {{- end }}
  {{- with $v.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
ports:
  - name: http
    containerPort: 8080
  - name: metrics
    containerPort: 9091
  {{- if and (eq $component "gateway") $v.picker.enabled }}
  - name: picker
    containerPort: {{ int $v.picker.port }}
  {{- end }}
# Time for the endpoints to forget it; then it refuses connections and finishes what it has.
lifecycle:
  preStop:
    sleep:
      seconds: {{ int $v.preStopSeconds }}
startupProbe:
  httpGet: {path: /livez/runtime, port: metrics}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /livez, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
# Gates: shutdown, api (the OpenAI port answers), routes (it knows where to send, or the scheduler has no pools to tell of).
readinessProbe:
  httpGet: {path: /readyz, port: metrics}
  periodSeconds: 2
  timeoutSeconds: 5
volumeMounts:
  - name: state
    mountPath: /var/lib/plimsoll
  {{- with include "plimsoll.tls.mount" (list $root) }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- if eq (include "plimsoll.publicTls" (list $root $component)) "true" }}
  - name: public
    mountPath: /etc/plimsoll/public
    readOnly: true
  {{- end }}
  {{- if and (eq $component "agent") $v.adapterCache.hostPath }}
  - name: adapters
    mountPath: /adapters
  {{- if $v.adapterCache.credentialsSecret }}
  - name: adapter-credentials
    mountPath: /etc/plimsoll/adapter-credentials
    readOnly: true
  {{- end }}
  {{- end }}
  {{- with $v.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
