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
  {{- include "outgate.partsWith" (list . $v (dict "native" true)) | nindent 2 }}
{{- end }}
classic:
  {{- include "outgate.partsWith" (list . $v (dict "native" false)) | nindent 2 }}
{{- if hasKey $v.app "runtimes" }}
{{- $java := dict "runtimes" (append $v.app.runtimes "java" | uniq) }}
java:
  {{- if $hasNative }}
  native:
    {{- include "outgate.partsWith" (list . $v (dict "native" true "app" $java)) | nindent 4 }}
  {{- end }}
  classic:
    {{- include "outgate.partsWith" (list . $v (dict "native" false "app" $java)) | nindent 4 }}
{{- end }}
{{- $named := dict "native" false "credentials" (dict "secret" "named-by-the-pod") }}
{{- $parts := fromYaml (include "outgate.partsWith" (list . $v $named)) }}
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

{{/* `outgate.parts` with some values changed: a list of the context, the values, and what is different. */}}
{{- define "outgate.partsWith" -}}
{{- $values := mergeOverwrite (deepCopy (index . 1)) (deepCopy (index . 2)) -}}
{{- include "outgate.parts" (dict "Capabilities" (index . 0).Capabilities "usersPerPod" true "Values" (dict "outgate" $values)) -}}
{{- end -}}
