{{- define "outgate.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "outgate.objectLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- end -}}

{{/* Of objects that belong to no namespace. */}}
{{- define "outgate.clusterName" -}}
{{- printf "%s-%s" (include "outgate.fullname" .) .Release.Namespace | trimSuffix "-" -}}
{{- end -}}

{{- define "outgate.injectorName" -}}{{ include "outgate.fullname" . }}-injector{{- end -}}

{{- define "outgate.injectorSelector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: injector
{{- end -}}

{{/* The Secret with the injector's certificate and key. */}}
{{- define "outgate.injectorSecret" -}}
{{- if eq .Values.injector.certificates.mode "existingSecret" -}}{{ .Values.injector.certificates.secret }}
{{- else -}}{{ include "outgate.injectorName" . }}-tls
{{- end -}}
{{- end -}}
