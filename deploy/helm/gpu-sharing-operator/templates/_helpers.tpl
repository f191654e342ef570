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

{{- /* An hour, where the kubelet's own mount would hold a token that the API server lets live for a year. */}}
{{- define "gpusharing.serviceAccountVolume" -}}
- name: service-account
  projected:
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3600}
      - configMap:
          name: kube-root-ca.crt
          items: [{key: ca.crt, path: ca.crt}]
      - downwardAPI:
          items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]
{{- end }}

{{- define "gpusharing.serviceAccountMount" -}}
- {name: service-account, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end }}

{{- define "gpusharing.operatorUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:gpusharing-operator
{{- end }}

{{- define "gpusharing.agentUser" -}}
system:serviceaccount:{{ include "gpusharing.agentNamespace" . }}:gpusharing-agent
{{- end }}
