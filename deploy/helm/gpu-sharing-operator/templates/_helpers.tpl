{{- /* Names are fixed: there is one operator per cluster, and a second release must fail at once. */}}
{{- define "gpusharing.labels" -}}
app.kubernetes.io/part-of: gpu-sharing-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "gpusharing.image" -}}
{{ .Values.image.repository }}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "gpusharing.agentNamespace" -}}
{{ .Values.agent.namespace | default .Release.Namespace }}
{{- end }}

{{- define "gpusharing.operatorUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:gpusharing-operator
{{- end }}

{{- define "gpusharing.agentUser" -}}
system:serviceaccount:{{ include "gpusharing.agentNamespace" . }}:gpusharing-agent
{{- end }}
