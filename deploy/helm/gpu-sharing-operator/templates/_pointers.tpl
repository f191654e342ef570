{{- /* What ClusterPolicy says now. */}}
{{- define "gpusharing.pointers" }}
{{- $ours := (index . 0).Values.gpuOperator }}

   ClusterPolicy {{ index . 1 }} says now:

   devicePlugin.config.name: {{ include "gpusharing.pointer" (list (index . 2) $ours.pluginConfigMap) }}
   migManager.config.name: {{ include "gpusharing.pointer" (list (index . 3) $ours.migConfigMap) }}
   mig.strategy: {{ with index . 4 }}{{ . }}, which overrides what a policy says{{ else }}nothing, so each policy says it{{ end }}
{{- end }}
{{- define "gpusharing.pointer" -}}
{{- $now := index . 0 }}{{ $ours := index . 1 }}
{{- if eq $now $ours }}{{ $now }}, as it must{{ else if $now }}{{ $now }}, which is not ours: our entries have no effect{{ else }}nothing{{ end }}
{{- end }}
