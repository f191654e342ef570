{{- /* Shows in the notes which ConfigMaps ClusterPolicy names now. */}}
{{- define "gpusharing.pointers" }}
{{- $ours := (index . 0).Values.gpuOperator }}

   ClusterPolicy {{ index . 1 }} currently says:

   devicePlugin.config.name: {{ include "gpusharing.pointer" (list (index . 2) $ours.pluginConfigMap) }}
   migManager.config.name: {{ include "gpusharing.pointer" (list (index . 3) $ours.migConfigMap) }}
   mig.strategy: {{ with index . 4 }}{{ . }}, which overrides spec.mig.strategy of every policy{{ else }}not set, so each policy decides{{ end }}
{{- if not (or $ours.adminPluginConfigMap (has (index . 2) (list "" $ours.pluginConfigMap))) }}

   Nodes whose labels name entries of {{ index . 2 }} lose their GPUs when the pointer moves, unless these are merged
   first (value gpuOperator.adminPluginConfigMap). `kubectl gpusharing import` gives the commands and the policies.
{{- end }}
{{- end }}
{{- define "gpusharing.pointer" -}}
{{- $now := index . 0 }}{{ $ours := index . 1 }}
{{- if eq $now $ours }}{{ $now }}, as required{{ else if $now }}{{ $now }}, which is not this operator's ConfigMap, so its entries have no effect{{ else }}not set{{ end }}
{{- end }}
