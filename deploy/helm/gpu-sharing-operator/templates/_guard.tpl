{{- /* The version in which this cluster serves MutatingAdmissionPolicy; empty if it serves none. The alpha version is not used:
in Kubernetes 1.32 it cannot evaluate the expression of the patch. */}}
{{- define "gpusharing.mutatingVersion" -}}
{{- $served := list }}
{{- range list "v1" "v1beta1" }}
{{- if $.Capabilities.APIVersions.Has (printf "admissionregistration.k8s.io/%s/MutatingAdmissionPolicy" .) }}{{ $served = append $served . }}{{ end }}
{{- end }}
{{- first $served | default "" }}
{{- end }}
{{- /* What the guard does: `mutating`, `validating` or `false`. */}}
{{- define "gpusharing.guard" -}}
{{- $served := include "gpusharing.mutatingVersion" . }}
{{- $mutates := ternary (ne $served "") (eq .Values.guard.kind "mutating") (eq .Values.guard.kind "auto") }}
{{- ternary (ternary "mutating" "validating" $mutates) "false" (not (not .Values.guard.enabled)) }}
{{- end }}
{{- /* What both policies of the guard share. Which pods they are for: the same names as names.is_gpu_resource. */}}
{{- define "gpusharing.guardMatches" -}}
matchConstraints:
  namespaceSelector:
    matchExpressions:
      - {key: gpusharing.dev/isolation, operator: Exists}
  resourceRules:
    - apiGroups: [""]
      apiVersions: [v1]
      operations: [CREATE]
      resources: [pods]
matchConditions:
  - name: requests-gpus
    expression: >-
      (object.spec.containers + object.spec.?initContainers.orValue([])).exists(container,
      [container.?resources.?requests.orValue({}), container.?resources.?limits.orValue({})].exists(quantities,
      quantities.exists(name, (name.startsWith('nvidia.com/gpu') || name.startsWith('nvidia.com/mig-')) &&
      string(quantities[name]) != '0')))
{{- end }}
{{- define "gpusharing.guardVariables" -}}
- name: level
  expression: namespaceObject.metadata.labels['gpusharing.dev/isolation']
- name: modes
  # Values of the routing label. In `mig-time-slicing` nothing separates the pods of one instance.
  expression: >-
    {'hardware': ['full', 'mig'], 'memory': ['full', 'mig', 'mps']}[?variables.level].orValue([])
- name: terms
  # Alternatives: a node has to match one of them.
  expression: >-
    object.spec.?affinity.?nodeAffinity.?requiredDuringSchedulingIgnoredDuringExecution.?nodeSelectorTerms.orValue([])
- name: selected
  expression: object.spec.?nodeSelector[?'gpusharing.dev/mode'].orValue('') in variables.modes
- name: open
  # The terms that also match nodes of other modes. A term without any requirement matches no node.
  expression: >-
    variables.terms.filter(term, (size(term.?matchExpressions.orValue([])) > 0 ||
    size(term.?matchFields.orValue([])) > 0) && !term.?matchExpressions.orValue([]).exists(row,
    row.key == 'gpusharing.dev/mode' && row.operator == 'In' && row.values.all(mode, mode in variables.modes)))
{{- end }}
