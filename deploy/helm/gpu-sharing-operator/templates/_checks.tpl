{{- /* Spec of the Job of a hook that runs one of our checks. `name` is the name of the Job and of the program, `account` its
service account, and `env` the program's variables. Helm 3.18 and newer shows the program's output. */}}
{{- define "gpusharing.checkJobSpec" -}}
{{- $check := . }}
{{- with .root -}}
# Runs once: a person reads the answer and tries again.
backoffLimit: 0
# Ends a Job whose pod is never scheduled. The pod's own deadline is shorter, because this one deletes the pod, and with
# it the cause.
activeDeadlineSeconds: 180
template:
  metadata:
    labels:
      app.kubernetes.io/name: {{ $check.name }}
      {{- include "gpusharing.labels" . | nindent 6 }}
  spec:
    restartPolicy: Never
    activeDeadlineSeconds: 120
    serviceAccountName: {{ $check.account }}
    automountServiceAccountToken: false
    enableServiceLinks: false
    {{- include "gpusharing.imagePullSecrets" . | nindent 4 }}
    {{- with .Values.operator.securityContext }}
    securityContext:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    containers:
      - name: check
        image: {{ include "gpusharing.image" . }}
        imagePullPolicy: {{ .Values.image.pullPolicy }}
        command: [{{ $check.name }}]
        env:
          {{- toYaml $check.env | nindent 10 }}
        {{- with .Values.operator.containerSecurityContext }}
        securityContext:
          {{- toYaml . | nindent 10 }}
        {{- end }}
        {{- with .Values.operator.resources }}
        resources:
          {{- toYaml . | nindent 10 }}
        {{- end }}
        volumeMounts:
          {{- include "gpusharing.serviceAccountMount" . | nindent 10 }}
    volumes:
      {{- include "gpusharing.serviceAccountVolume" . | nindent 6 }}
    {{- with .Values.operator.nodeSelector }}
    nodeSelector:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    tolerations:
      - {key: gpusharing.dev/unproven, operator: Exists, effect: NoSchedule}
      {{- with .Values.operator.tolerations }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end }}
{{- end }}
