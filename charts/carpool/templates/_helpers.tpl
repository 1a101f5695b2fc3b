{{- define "carpool.name" -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- /* ClusterRoles are shared by all namespaces: the release's name alone may be taken. */ -}}
{{- define "carpool.clusterName" -}}
{{ printf "%s-%s" .Release.Namespace (include "carpool.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "carpool.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary (include "carpool.name" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "carpool.selector" -}}
app.kubernetes.io/name: carpool-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "carpool.labels" -}}
{{ include "carpool.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* "carpool.image" (list . "operator") */ -}}
{{- define "carpool.image" -}}
{{- $root := index . 0 -}}
{{- with $root.Values.image -}}
{{ .registry }}/{{ index .repositories (index $ 1) }}:{{ .tag | default $root.Chart.AppVersion }}
{{- with .digests }}{{ with index . (index $ 1) }}@{{ . }}{{ end }}{{ end }}
{{- end }}
{{- end }}

{{- /* What the `restricted` Pod Security Standard asks for; any user will do, so OpenShift may choose one. */ -}}
{{- define "carpool.podSecurityContext" -}}
runAsNonRoot: true
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "carpool.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
