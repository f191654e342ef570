{{- /* The paths of all values, from the tables of README.md, which are generated from values.yaml. True for those with
values below them. Helm gives templates neither values.yaml nor the schema. */}}
{{- define "gpusharing.knownValues" -}}
{{- $known := dict }}
{{- range regexFindAll "(?m)^[|] `[A-Za-z.]+`" (.Files.Get "README.md") -1 }}
{{- $parts := trimAll "| `" . | splitList "." }}
{{- range $count := untilStep 1 (len $parts) 1 }}{{ $_ := set $known (slice $parts 0 $count | join ".") true }}{{ end }}
{{- $_ := set $known (join "." $parts) false }}
{{- end }}
{{- toJson $known }}
{{- end }}

{{- /* Not empty if `name` is a part of `known`, or differs in a few letters that follow each other, or after the sixth. */}}
{{- define "gpusharing.isNear" -}}
{{- $alike := list .known }}
{{- range $start := until (max 0 (sub (len .known) 1) | int) }}
{{- $alike = append $alike (printf "%s.{0,3}%s" (substr 0 $start $.known) (substr (int (add $start 2)) -1 $.known)) }}
{{- end }}
{{- if or (contains (lower .name) (lower .known)) (regexMatch (printf "(?i)^(%s)$" (join "|" $alike)) .name) (eq (trunc 6 (lower .name)) (trunc 6 (lower .known))) }}true{{ end }}
{{- end }}

{{- /* A line for each of `values`, which are those below `at`, that is not in `known`: with the values of nearly that name
there, or else of that name elsewhere, or else all that are there. JSON Schema can only say that a value is not allowed. */}}
{{- define "gpusharing.unknownValues" -}}
{{- range $key, $value := .values }}
{{- $path := printf "%s%s" $.at $key }}
{{- if contains "." $key }}
{{ $path }} has a dot in one key, which sets nothing: write each part as a key below the one before
{{- else if not (hasKey $.known $path) }}
{{- $near := list }}{{ $elsewhere := list }}{{ $here := list }}
{{- range $known := keys $.known | sortAlpha }}
{{- $name := splitList "." $known | last }}
{{- if eq $known (printf "%s%s" $.at $name) }}
{{- $here = append $here $known }}
{{- if include "gpusharing.isNear" (dict "name" $key "known" $name) }}{{ $near = append $near $known }}{{ end }}
{{- else if eq (trunc 6 (lower $key)) (trunc 6 (lower $name)) }}{{ $elsewhere = append $elsewhere $known }}
{{- end }}
{{- end }}
{{- with $near | default $elsewhere }}
{{ $path }} is not a value of this chart: did you mean {{ join " or " . }}?
{{- else }}
{{ $path }} is not a value of this chart: use one of {{ join ", " $here }}
{{- end }}
{{- else if and (get $.known $path) (kindIs "map" $value) (ne $path "global") }}
{{- include "gpusharing.unknownValues" (dict "known" $.known "values" $value "at" (printf "%s." $path)) }}
{{- end }}
{{- end }}
{{- end }}
