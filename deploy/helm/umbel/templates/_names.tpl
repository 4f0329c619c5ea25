{{- define "umbel.name" -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "umbel.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "umbel.labels" -}}
{{ include "umbel.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "umbel.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "umbel.confined" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- if .Values.fleet.storeSecret }}
env:
  - name: UMBEL_STORE_URL
    valueFrom:
      secretKeyRef: { name: {{ .Values.fleet.storeSecret | quote }}, key: url }
{{- end }}
volumeMounts:
  - { name: fleet, mountPath: /var/lib/umbel }
  - { name: tmp, mountPath: /tmp }
  {{- if .Values.fleet.storeAuthoritySecret }}
  - { name: store-authority, mountPath: /run/store-ca, readOnly: true }
  {{- end }}
{{- end -}}
