{{- /* The names of our objects are fixed: there is one operator per cluster, and a second release must fail at once. */}}
{{- define "gpusharing.labels" -}}
{{- $own := dict "app.kubernetes.io/part-of" "gpu-sharing-operator" "app.kubernetes.io/instance" .Release.Name }}
{{- $own = merge $own (dict "app.kubernetes.io/version" .Chart.AppVersion "app.kubernetes.io/managed-by" .Release.Service) }}
{{- $own = merge $own (dict "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_")) }}
{{- /* The templates themselves write app.kubernetes.io/name, which selects the pods. */}}
{{- toYaml (merge $own (omit (.Values.commonLabels | default dict) "app.kubernetes.io/name")) }}
{{- end }}

{{- define "gpusharing.image" -}}
{{- $registry := .Values.global.imageRegistry | default .Values.image.registry }}
{{- $repository := .Values.image.repository | default (empty $registry | ternary "" "gpu-sharing-operator") }}
{{- with $registry }}{{ trimSuffix "/" . }}/{{ end }}{{ $repository }}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "gpusharing.imagePullSecrets" -}}
{{- with concat (.Values.global.imagePullSecrets | default list) .Values.imagePullSecrets | uniq }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "gpusharing.operatorAccount" -}}
{{ .Values.operator.serviceAccount.name | default "gpusharing-operator" }}
{{- end }}

{{- define "gpusharing.agentAccount" -}}
{{ .Values.agent.serviceAccount.name | default "gpusharing-agent" }}
{{- end }}

{{- /* Appends the `extra` entries of the list `what` to our `own`. Refuses a name that our own entries have: an API server
would use either of the two, or neither. */}}
{{- define "gpusharing.extend" -}}
{{- $names := list }}
{{- range .own }}{{ $names = append $names .name }}{{ end }}
{{- range .extra }}
{{- if has .name $names }}
{{- fail (printf "%s: %s is set by the chart, so the list would contain it twice. Remove it" $.what .name) }}
{{- end }}
{{- $names = append $names .name }}
{{- end }}
{{- toYaml (concat .own .extra) }}
{{- end }}

{{- define "gpusharing.agentNamespace" -}}
{{ .Values.agent.namespace | default .Release.Namespace }}
{{- end }}

{{- /* Mounts a token that is valid for an hour. The kubelet's own mount would have one that the API server extends to a year. */}}
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
system:serviceaccount:{{ .Release.Namespace }}:{{ include "gpusharing.operatorAccount" . }}
{{- end }}

{{- define "gpusharing.agentUser" -}}
system:serviceaccount:{{ include "gpusharing.agentNamespace" . }}:{{ include "gpusharing.agentAccount" . }}
{{- end }}

{{- /* The seconds of a duration such as 1m30s. */}}
{{- define "gpusharing.seconds" -}}
{{- $seconds := 0 }}
{{- range $unit, $size := dict "h" 3600 "m" 60 "s" 1 }}
{{- $seconds = regexFind (printf "[1-9][0-9]*%s" $unit) $ | trimSuffix $unit | int | mul $size | add $seconds }}
{{- end }}
{{- $seconds }}
{{- end }}

{{- /* Renders operator.neighborLabels in the form of the operator's environment variable: key=value,key=value. */}}
{{- define "gpusharing.neighborLabels" -}}
{{- $found := list -}}
{{- range $key, $value := .Values.operator.neighborLabels }}{{ $found = append $found (printf "%s=%s" $key $value) }}{{ end -}}
{{- join "," $found -}}
{{- end }}

{{- /* The account whose token the monitors of the agents send, or nothing where there are none or no token is needed. */}}
{{- define "gpusharing.metricsAccount" -}}
{{- if and .Values.agent.secureMetrics (or .Values.monitoring.podMonitor.enabled .Values.monitoring.serviceMonitor.enabled) }}gpusharing-metrics-reader{{ end }}
{{- end }}

{{- /* Not empty where Helm itself applies what it renders, so that its hooks have a meaning and are deleted again. `helm template`,
which Argo CD and others use, asks no server, and there each look-up is empty, even that of kube-system. */}}
{{- define "gpusharing.helmApplies" -}}
{{- if lookup "v1" "Namespace" "" "kube-system" }}true{{ end }}
{{- end }}

{{- /* Annotations of objects with whose deletion goes what other people have put there: neither Helm nor Argo CD nor Flux deletes them. */}}
{{- define "gpusharing.keep" -}}
helm.sh/resource-policy: keep
argocd.argoproj.io/sync-options: Prune=false,Delete=false
kustomize.toolkit.fluxcd.io/prune: disabled
{{- end }}
