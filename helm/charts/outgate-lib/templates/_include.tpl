{{/*
What an app's chart includes in its pod template, with `.` as argument:

      {{- include "outgate.initContainers" . | nindent 8 }}
      {{- include "outgate.containers" . | nindent 8 }}        only for `native: false`; empty otherwise
            {{- include "outgate.env" . | nindent 12 }}
            {{- include "outgate.volumeMounts" . | nindent 12 }}
      {{- include "outgate.volumes" . | nindent 8 }}
        {{- include "outgate.labels" . | nindent 8 }}
*/}}
{{- define "outgate.part" -}}
{{- $part := index (fromYaml (include "outgate.parts" .context)) .key -}}
{{- if $part -}}{{- toYaml $part -}}{{- end -}}
{{- end -}}

{{- define "outgate.initContainers" -}}{{- include "outgate.part" (dict "context" . "key" "initContainers") -}}{{- end -}}
{{- define "outgate.containers" -}}{{- include "outgate.part" (dict "context" . "key" "containers") -}}{{- end -}}
{{- define "outgate.env" -}}{{- include "outgate.part" (dict "context" . "key" "env") -}}{{- end -}}
{{- define "outgate.volumeMounts" -}}{{- include "outgate.part" (dict "context" . "key" "volumeMounts") -}}{{- end -}}
{{- define "outgate.volumes" -}}{{- include "outgate.part" (dict "context" . "key" "volumes") -}}{{- end -}}
{{- define "outgate.labels" -}}{{- include "outgate.part" (dict "context" . "key" "labels") -}}{{- end -}}
