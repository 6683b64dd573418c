{{/*
What `outgate injector` and `outgate inject` take: `outgate.parts` in both modes, and what a pod's own Secret adds. Each part is made by the
define that charts include, with one value changed.
*/}}
{{- define "outgate.template" -}}
{{- $v := fromYaml (include "outgate.values" .) -}}
{{- $hasNative := semverCompare ">=1.29.0-0" .Capabilities.KubeVersion.Version -}}
{{- if and $v.native (not $hasNative) -}}
{{- fail (printf "outgate: Kubernetes %s has no native sidecars; set `native: false`" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
default: {{ ternary "native" "classic" $v.native }}
{{- if $hasNative }}
native:
  {{- include "outgate.parts" (dict "Capabilities" .Capabilities "Values" (dict "outgate" (mergeOverwrite (deepCopy $v) (dict "native" true)))) | nindent 2 }}
{{- end }}
classic:
  {{- $classic := mergeOverwrite (deepCopy $v) (dict "native" false) }}
  {{- include "outgate.parts" (dict "Capabilities" .Capabilities "Values" (dict "outgate" $classic)) | nindent 2 }}
{{- $named := mergeOverwrite (deepCopy $classic) (dict "credentials" (dict "secret" "named-by-the-pod")) }}
{{- $parts := fromYaml (include "outgate.parts" (dict "Capabilities" .Capabilities "Values" (dict "outgate" $named))) }}
credentials:
  volumes:
    {{- range $parts.volumes }}
    {{- if eq .name "outgate-credentials" }}
    {{- toYaml (list .) | nindent 4 }}
    {{- end }}
    {{- end }}
  volumeMounts:
    {{- range (first $parts.containers).volumeMounts }}
    {{- if eq .name "outgate-credentials" }}
    {{- toYaml (list .) | nindent 4 }}
    {{- end }}
    {{- end }}
{{- end -}}
