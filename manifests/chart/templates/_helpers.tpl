{{/* What the objects are called: the release's name, with the chart's if it is not in it. */}}
{{- define "fairlead.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "fairlead.controller" -}}{{ include "fairlead.name" . }}-controller{{- end -}}
{{- define "fairlead.programmer" -}}{{ include "fairlead.name" . }}-programmer{{- end -}}

{{/* Labels that never change, of a component: (list . "controller"). */}}
{{- define "fairlead.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* All labels of a component. */}}
{{- define "fairlead.labels" -}}
{{- $root := index . 0 -}}
{{ include "fairlead.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* An image: (list . "controller"). */}}
{{- define "fairlead.image" -}}
{{- $root := index . 0 -}}
{{- with $root.Values.image.registry }}{{ . }}/{{ end -}}
fairlead/{{ index . 1 }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end -}}

{{/* Where the API server is, without the Service that these programs have yet to make work. */}}
{{- define "fairlead.apiServer" -}}
{{- with .Values.apiServer.host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ . | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ $.Values.apiServer.port | quote }}
{{- end }}
{{- end -}}

{{- define "fairlead.shadow" -}}{{ if eq .Values.profile "shadow" }}true{{ end }}{{- end -}}

{{/* A container that may do nothing special. */}}
{{- define "fairlead.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* What a program says when it ends stands in the status of its Pod: `kubectl describe` shows why it does not run. */}}
{{- define "fairlead.lastWords" -}}
terminationMessagePolicy: FallbackToLogsOnError
{{- end -}}

{{- define "fairlead.healthPort" -}}
{{ .Values.programmer.healthPort | default (ternary 10356 10256 (eq .Values.profile "shadow")) }}
{{- end -}}
{{- define "fairlead.metricsPort" -}}
{{ .Values.programmer.metricsPort | default (ternary 10349 10249 (eq .Values.profile "shadow")) }}
{{- end -}}

{{/* An address with a port: (list "::" 80). */}}
{{- define "fairlead.socket" -}}
{{- $address := index . 0 -}}
{{ ternary (printf "[%s]" $address) $address (contains ":" $address) }}:{{ index . 1 }}
{{- end -}}

{{/* The programmer's KubeProxyConfiguration. */}}
{{- define "fairlead.configuration" -}}
{{- $anywhere := ternary "::" "0.0.0.0" (contains ":" (.Values.programmer.config.bindAddress | default "")) -}}
{{- $fixed := dict
  "apiVersion" "kubeproxy.config.k8s.io/v1alpha1"
  "kind" "KubeProxyConfiguration"
  "healthzBindAddress" (include "fairlead.socket" (list $anywhere (include "fairlead.healthPort" .)))
  "metricsBindAddress" (include "fairlead.socket" (list .Values.programmer.metricsAddress (include "fairlead.metricsPort" .)))
-}}
{{- merge $fixed .Values.programmer.config | toYaml }}
{{- end -}}

{{/* A schema could say it, but not what is expected. */}}
{{- define "fairlead.checkAddresses" -}}
{{- $octet := "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])" }}
{{- $v4 := printf "(%s\\.){3}%s" $octet $octet }}
{{- $v6 := "[0-9a-fA-F:.]*:[0-9a-fA-F:.]*" }}
{{- $network4 := printf "%s/(3[0-2]|[12]?[0-9])" $v4 }}
{{- $network6 := printf "%s/(12[0-8]|1[01][0-9]|[1-9]?[0-9])" $v6 }}
{{- $config := .Values.programmer.config }}
{{- range $key, $address := dict "config.bindAddress" $config.bindAddress "metricsAddress" .Values.programmer.metricsAddress }}
{{- if and $address (not (regexMatch (printf "^(%s|%s)$" $v4 $v6) $address)) }}
{{- fail (printf "programmer.%s is %s: expected an IP address" $key $address) }}
{{- end }}
{{- end }}
{{- with $config.clusterCIDR }}
{{- if not (regexMatch (printf "^(%s|%s|%s,%s|%s,%s)$" $network4 $network6 $network4 $network6 $network6 $network4) .) }}
{{- fail (printf "programmer.config.clusterCIDR is %s: expected a network such as 10.244.0.0/16, or one of each family with a comma between them" .) }}
{{- end }}
{{- end }}
{{- range $config.nodePortAddresses }}
{{- if not (or (regexMatch (printf "^(%s|%s)$" $network4 $network6) .) (eq . (len $config.nodePortAddresses | eq 1 | ternary "primary" ""))) }}
{{- fail (printf "programmer.config.nodePortAddresses names %s: expected networks such as 10.0.0.0/8, or the one word primary" .) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What a schema cannot say. */}}
{{- define "fairlead.check" -}}
{{- if not (or .Values.controller.enabled .Values.programmer.enabled) }}
{{- fail "controller.enabled and programmer.enabled are both false: nothing is left to install" }}
{{- end }}
{{- if and .Values.programmer.enabled (not .Values.apiServer.host) (ne .Values.profile "shadow") }}
{{- fail "apiServer.host is empty: the programmer needs an address of the API server that works without Services; `kubectl get endpointslices --namespace default` shows those that the Service kubernetes stands for" }}
{{- end }}
{{- range list (list "renewDeadline" "leaseDuration") (list "retryPeriod" "renewDeadline") }}
{{- $shorter := get $.Values.controller.leaderElection (index . 0) }}
{{- $longer := get $.Values.controller.leaderElection (index . 1) }}
{{- if ge (trimSuffix "s" $shorter | int) (trimSuffix "s" $longer | int) }}
{{- fail (printf "controller.leaderElection.%s is %s: expected less than controller.leaderElection.%s, which is %s" (index . 0) $shorter (index . 1) $longer) }}
{{- end }}
{{- end }}
{{- include "fairlead.checkAddresses" . }}
{{- $mode := .Values.programmer.config.detectLocalMode | default "ClusterCIDR" }}
{{- $local := .Values.programmer.config.detectLocal | default dict }}
{{- if and (eq $mode "BridgeInterface") (not $local.bridgeInterface) }}
{{- fail "programmer.config.detectLocal.bridgeInterface is empty: programmer.config.detectLocalMode BridgeInterface needs it" }}
{{- end }}
{{- if and (eq $mode "InterfaceNamePrefix") (not $local.interfaceNamePrefix) }}
{{- fail "programmer.config.detectLocal.interfaceNamePrefix is empty: programmer.config.detectLocalMode InterfaceNamePrefix needs it" }}
{{- end }}
{{- if eq (include "fairlead.healthPort" .) (include "fairlead.metricsPort" .) }}
{{- fail (printf "programmer.healthPort and programmer.metricsPort are both %s: they are ports of the same node" (include "fairlead.healthPort" .)) }}
{{- end }}
{{- end -}}
