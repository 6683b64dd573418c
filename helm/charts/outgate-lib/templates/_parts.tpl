{{/*
The one place that says what outgate adds to a pod. `outgate.parts` is one YAML document:

  initContainers   before the pod's own
  containers       before the pod's own (where `native` is false)
  volumes          beside the pod's own
  env              of every container of the app, unless it has the variable already
  volumeMounts     of every container of the app
  labels           of the pod

The defines that charts include (_include.tpl) each show one part of it, and whatever else puts outgate into pods takes the
same document. It reads nothing but `outgate.values`, and whether the users of apps are known for each pod only (`usersPerPod`: the injector looks at them).
*/}}
{{- define "outgate.parts" -}}
{{- $v := fromYaml (include "outgate.values" .) -}}
{{- if and $v.native (semverCompare "<1.29.0-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "outgate: Kubernetes %s has no native sidecars; set `native: false`" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- include "outgate.distinctPorts" $v -}}
{{- $container := fromYaml (include "outgate.container" $v) -}}
{{- $before := list -}}
{{- if eq $v.app.mode "redirect" -}}
{{- include "outgate.distinctUser" $v -}}
{{- if and (not $v.app.users) (not .usersPerPod) -}}
{{- fail "outgate: `app.mode: redirect` wants to know the users that the app's containers run as (`app.users`): one that is the sidecar's would not be redirected" -}}
{{- end -}}
{{- $before = append $before (fromYaml (include "outgate.redirectContainer" $v)) -}}
{{- end -}}
labels:
  outgate.dev/injected: "true"
initContainers:
  {{- if $v.native }}
  {{- toYaml (append $before (set $container "restartPolicy" "Always")) | nindent 2 }}
  {{- else if $before }}
  {{- toYaml $before | nindent 2 }}
  {{- else }} []
  {{- end }}
containers:
  {{- if $v.native }} []
  {{- else }}
  {{- toYaml (list $container) | nindent 2 }}
  {{- end }}
env:
  {{- include "outgate.appEnvironment" $v | nindent 2 }}
volumeMounts:
  {{- if eq $v.ca.mode "none" }} []
  {{- else }}
  - name: outgate-public
    mountPath: /var/run/outgate
    readOnly: true
  {{- end }}
volumes:
  {{- include "outgate.podVolumes" $v | nindent 2 }}
{{- end -}}

{{/* The values of this library, under whatever name the app's chart has it. */}}
{{- define "outgate.values" -}}
{{- $v := .Values.outgate | default (index .Values "outgate-lib") -}}
{{- if not $v -}}
{{- fail "outgate: name the dependency `outgate` (alias: outgate), so that its values are found" -}}
{{- end -}}
{{- toYaml $v -}}
{{- end -}}

{{/* Two listeners on one port would be a sidecar that never starts. */}}
{{- define "outgate.distinctPorts" -}}
{{- $seen := dict -}}
{{- range $key, $port := .ports -}}
{{- $number := printf "%d" (int64 $port) -}}
{{- if not (and (eq $key "transparent") (ne $.app.mode "redirect")) -}}
{{- if hasKey $seen $number -}}
{{- fail (printf "outgate: `ports.%s` and `ports.%s` are both %s" (get $seen $number) $key $number) -}}
{{- end -}}
{{- $_ := set $seen $number $key -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "outgate.image" -}}
{{- if .image.digest -}}{{ .image.repository }}@{{ .image.digest }}
{{- else -}}{{ .image.repository }}:{{ .image.tag }}
{{- end -}}
{{- end -}}

{{/* The rules tell outgate from the app by its user: the app must not have it. 65532 is the one of many images without root. */}}
{{- define "outgate.distinctUser" -}}
{{- if eq (int64 .uid) 65532 -}}
{{- fail "outgate: `app.mode: redirect` wants a `uid` that no app has, and 65532 is that of many images: set another one, such as 64532" -}}
{{- end -}}
{{- range .app.users -}}
{{- if eq (int64 .) (int64 $.uid) -}}
{{- fail (printf "outgate: user %d of `app.users` is the sidecar's `uid` too: its connections would not be redirected" (int64 .)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Makes the rules of `app.mode: redirect`, before anything else in the pod runs. Root, because nothing less is given a capability. */}}
{{- define "outgate.redirectContainer" -}}
name: {{ printf "%s-redirect" .name | quote }}
image: {{ include "outgate.image" .redirect | quote }}
imagePullPolicy: {{ .redirect.image.pullPolicy }}
args:
  - redirect
  - setup
  - --uid={{ int64 .uid }}
  - --port={{ int64 .ports.transparent }}
  {{- with .redirect.ports }}
  - --ports={{ join "," . }}
  {{- end }}
  {{- with .redirect.excludeCIDRs }}
  - --exclude-cidr={{ join "," . }}
  {{- end }}
resources:
  {{- toYaml .resources | nindent 2 }}
securityContext:
  runAsNonRoot: false
  runAsUser: 0
  runAsGroup: 0
  allowPrivilegeEscalation: false
  privileged: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL], add: [NET_ADMIN] }
  seccompProfile: { type: RuntimeDefault }
terminationMessagePolicy: FallbackToLogsOnError
{{- end -}}

{{/* The sidecar. What it sets on the command line takes the place of what the policy says there, so one policy does for every pod. */}}
{{- define "outgate.container" -}}
name: {{ .name | quote }}
image: {{ include "outgate.image" . | quote }}
imagePullPolicy: {{ .image.pullPolicy }}
args:
  - run
  - --config=/etc/outgate/policy
  - --log={{ .log }}
env:
  - name: OUTGATE_SET
    value: |-
      {{- include "outgate.settings" . | nindent 6 }}
  {{- if .ca.extraConfigMap }}
  - name: SSL_CERT_FILE
    value: /etc/ssl/certs/ca-certificates.crt
  - name: SSL_CERT_DIR
    value: /etc/outgate/extra-ca
  {{- end }}
  {{- with .env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
ports:
  - name: outgate-metrics
    containerPort: {{ .ports.health }}
startupProbe:
  httpGet: { path: /readyz, port: outgate-metrics }
  periodSeconds: {{ .startup.periodSeconds }}
  failureThreshold: {{ .startup.failureThreshold }}
livenessProbe:
  httpGet: { path: /healthz, port: outgate-metrics }
  periodSeconds: 10
  timeoutSeconds: 2
{{- if .readinessProbe.enabled }}
readinessProbe:
  httpGet: { path: /readyz, port: outgate-metrics }
  periodSeconds: 5
  timeoutSeconds: 2
{{- end }}
{{- if not .native }}
lifecycle:
  postStart:
    exec:
      command: ["/usr/local/bin/outgate", "probe", "--address=127.0.0.1:{{ .ports.admin }}", "--path=/readyz", "--wait={{ mul .startup.periodSeconds .startup.failureThreshold }}"]
{{- end }}
resources:
  {{- toYaml .resources | nindent 2 }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ int64 .uid }}
  runAsGroup: {{ if eq .ca.mode "existingSecret" }}0{{ else }}{{ int64 .gid }}{{ end }}
  allowPrivilegeEscalation: false
  privileged: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
  seccompProfile: { type: RuntimeDefault }
terminationMessagePolicy: FallbackToLogsOnError
volumeMounts:
  - { name: outgate-policy, mountPath: /etc/outgate/policy, readOnly: true }
  - { name: outgate-private, mountPath: /var/lib/outgate }
  {{- if ne .ca.mode "none" }}
  - { name: outgate-public, mountPath: /var/run/outgate }
  {{- end }}
  {{- if eq .ca.mode "existingSecret" }}
  - { name: outgate-ca, mountPath: /etc/outgate/ca, readOnly: true }
  {{- end }}
  {{- if .ca.extraConfigMap }}
  - { name: outgate-extra-ca, mountPath: /etc/outgate/extra-ca, readOnly: true }
  {{- end }}
  {{- if .credentials.secret }}
  - { name: outgate-credentials, mountPath: /etc/outgate/credentials, readOnly: true }
  {{- end }}
  {{- if .credentials.token.audience }}
  - { name: outgate-token, mountPath: /var/run/secrets/outgate, readOnly: true }
  {{- end }}
{{- end -}}

{{/* One setting a line, as `--set` takes them. */}}
{{- define "outgate.settings" -}}
{{- if eq .app.mode "redirect" -}}
{{- $transparent := printf "%d" (int64 .ports.transparent) -}}
listeners=[{address: "127.0.0.1:{{ .ports.proxy }}"}, {address: "127.0.0.1:{{ $transparent }}", accept: [transparent]}, {address: "[::1]:{{ $transparent }}", accept: [transparent]}]
{{ end -}}
admin.address=127.0.0.1:{{ .ports.admin }}
admin.health_address={{ .healthHost }}:{{ .ports.health }}
{{- if eq .ca.mode "existingSecret" }}
interception.ca={certificate: /etc/outgate/ca/tls.crt, key: /etc/outgate/ca/tls.key}
{{- else }}
interception.ca={directory: /var/lib/outgate/ca}
{{- end }}
{{- if eq .ca.mode "none" }}
interception.bundle=/var/lib/outgate/ca-bundle.pem
{{- else }}
interception.bundle=/var/run/outgate/ca-bundle.pem
{{- if has "java" .app.runtimes }}
interception.truststore=/var/run/outgate/truststore.p12
{{- end }}
{{- end }}
{{- if .native }}
runtime.drain={{ .drain }}
{{- else }}
admin.quit=true
runtime.linger={{ .classic.linger }}
runtime.linger_idle={{ .classic.lingerIdle }}
runtime.drain={{ .classic.drain }}
{{- end }}
{{- end -}}

{{/* What points an app at outgate: the names that `outgate env` prints. Loopback and the cluster's own names stay direct. */}}
{{- define "outgate.appEnvironment" -}}
{{- $list := list -}}
{{- if .app.proxyVariables -}}
{{- range list "HTTPS_PROXY" "https_proxy" "HTTP_PROXY" "http_proxy" -}}
{{- $list = append $list (dict "name" . "value" (printf "http://127.0.0.1:%d" (int64 $.ports.proxy))) -}}
{{- end -}}
{{- $direct := concat (list "localhost" "127.0.0.1" "::1" ".localhost" ".svc" ".cluster.local" "$(KUBERNETES_SERVICE_HOST)") .app.noProxy -}}
{{- range list "NO_PROXY" "no_proxy" -}}
{{- $list = append $list (dict "name" . "value" (join "," $direct)) -}}
{{- end -}}
{{- $list = append $list (dict "name" "NODE_USE_ENV_PROXY" "value" "1") -}}
{{- end -}}
{{- if ne .ca.mode "none" -}}
{{- range list "SSL_CERT_FILE" "REQUESTS_CA_BUNDLE" "CURL_CA_BUNDLE" "AWS_CA_BUNDLE" "HTTPLIB2_CA_CERTS" "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH" "GIT_SSL_CAINFO" "CARGO_HTTP_CAINFO" "PIP_CERT" "NODE_EXTRA_CA_CERTS" "DENO_CERT" -}}
{{- $list = append $list (dict "name" . "value" "/var/run/outgate/ca-bundle.pem") -}}
{{- end -}}
{{- end -}}
{{- if has "java" .app.runtimes -}}
{{- $options := list -}}
{{- if .app.proxyVariables -}}
{{- range list "http" "https" -}}
{{- $options = concat $options (list (printf "-D%s.proxyHost=127.0.0.1" .) (printf "-D%s.proxyPort=%d" . (int64 $.ports.proxy))) -}}
{{- end -}}
{{- $direct := list "localhost" "127.*" "[::1]" "*.localhost" "*.svc" "*.cluster.local" "$(KUBERNETES_SERVICE_HOST)" -}}
{{- range .app.noProxy -}}
{{- if not (contains "/" .) -}}{{- $direct = append $direct (regexReplaceAll "^\\." . "*.") -}}{{- end -}}
{{- end -}}
{{- $options = append $options (printf "-Dhttp.nonProxyHosts=%s" (join "|" $direct)) -}}
{{- end -}}
{{- if ne .ca.mode "none" -}}
{{- $options = concat $options (list "-Djavax.net.ssl.trustStore=/var/run/outgate/truststore.p12" "-Djavax.net.ssl.trustStoreType=PKCS12" "-Djavax.net.ssl.trustStorePassword=changeit") -}}
{{- end -}}
{{- if $options -}}
{{- $list = append $list (dict "name" "JAVA_TOOL_OPTIONS" "value" (join " " $options)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $list -}}
{{- end -}}

{{/* The CA's key and the credentials are in volumes that the sidecar alone mounts. */}}
{{- define "outgate.podVolumes" -}}
- name: outgate-policy
  configMap: { name: {{ .policy.configMap | quote }} }
- name: outgate-private
  emptyDir: { medium: Memory, sizeLimit: 4Mi }
{{- if ne .ca.mode "none" }}
- name: outgate-public
  emptyDir: { sizeLimit: 8Mi }
{{- end }}
{{- if eq .ca.mode "existingSecret" }}
- name: outgate-ca
  secret: { secretName: {{ .ca.secret | quote }}, defaultMode: 288 }
{{- end }}
{{- if .ca.extraConfigMap }}
- name: outgate-extra-ca
  configMap: { name: {{ .ca.extraConfigMap | quote }} }
{{- end }}
{{- if .credentials.secret }}
- name: outgate-credentials
  secret: { secretName: {{ .credentials.secret | quote }}, defaultMode: 292 }
{{- end }}
{{- if .credentials.token.audience }}
- name: outgate-token
  projected:
    defaultMode: 292
    sources:
      - serviceAccountToken:
          path: token
          audience: {{ .credentials.token.audience | quote }}
          expirationSeconds: {{ int64 .credentials.token.expirationSeconds }}
{{- end }}
{{- end -}}
