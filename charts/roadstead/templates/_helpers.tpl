{{/* Start of all names. */}}
{{- define "roadstead.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 45 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "roadstead.operatorAccount" -}}
{{- .Values.operator.serviceAccount.name | default (printf "%s-operator" (include "roadstead.fullname" .)) -}}
{{- end -}}

{{- define "roadstead.shimAccount" -}}
{{- .Values.shim.serviceAccount.name | default (printf "%s-shim" (include "roadstead.fullname" .)) -}}
{{- end -}}

{{/* What selects the operator's pod; never changes during the life of a release. */}}
{{- define "roadstead.operatorSelector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* Kubernetes' recommended labels. Takes a dict: context, component. */}}
{{- define "roadstead.labels" -}}
app.kubernetes.io/name: {{ .context.Chart.Name }}
app.kubernetes.io/instance: {{ .context.Release.Name }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/version: {{ .context.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: roadstead
app.kubernetes.io/managed-by: {{ .context.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .context.Chart.Name .context.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* Reference of an image. Takes a dict: context, image. */}}
{{- define "roadstead.image" -}}
{{- printf "%s:%s" .image.repository (.image.tag | default .context.Chart.AppVersion) -}}
{{- end -}}

{{/* The job namespaces, as a JSON list. */}}
{{- define "roadstead.jobNamespaces" -}}
{{- if has .Release.Namespace .Values.jobNamespaces -}}
{{- fail (printf "jobNamespaces must not contain %s, the operator's own namespace: who may exec into jobs could exec into the operator" .Release.Namespace) -}}
{{- end -}}
{{- .Values.jobNamespaces | toJson -}}
{{- end -}}

{{/* Pull policy of the helper and agent images: a class has one for both. */}}
{{- define "roadstead.helperPullPolicy" -}}
{{- $helper := .Values.helper.image.pullPolicy -}}
{{- $agent := .Values.agent.image.pullPolicy -}}
{{- if and $helper $agent (ne $helper $agent) -}}
{{- fail "helper.image.pullPolicy and agent.image.pullPolicy must be the same: a JobClass has one for both" -}}
{{- end -}}
{{- $helper | default $agent -}}
{{- end -}}
