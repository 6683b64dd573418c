{{/* Metadata services, as networks; what stands first holds some of the others. tests/packaging compares them with those of the program. */}}
{{- define "outgate.metadata" -}}
{{- toJson (list "169.254.0.0/16" "100.100.100.200/32" "168.63.129.16/32" "192.0.0.192/32" "169.254.169.254/32" "169.254.170.2/32" "169.254.170.23/32" "fe80::/10" "fd00:ec2::254/128" "fd00:ec2::23/128" "fd20:ce::254/128" "fe80::a9fe:a9fe/128") -}}
{{- end -}}

{{/* What a network holds of them, as a NetworkPolicy excepts it: each strictly within it, and none within another. JSON. */}}
{{- define "outgate.exceptions" -}}
{{- $network := . -}}
{{- $found := list -}}
{{- range $service := fromJsonArray (include "outgate.metadata" $network) -}}
{{- if include "outgate.holds" (list $network $service) -}}
{{- if not (include "outgate.holds" (list $service $network)) -}}
{{- $outer := "" -}}
{{- range $found -}}{{- $outer = printf "%s%s" $outer (include "outgate.holds" (list . $service)) -}}{{- end -}}
{{- if not $outer -}}{{- $found = append $found $service -}}{{- end -}}
{{- else if regexMatch "/(32|128)$" $service -}}
{{- fail (printf "outgate: `networkPolicy.clusterCidrs` names %s, which is a metadata service: no pod may reach it" $network) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/* Whether the first network holds the second: `true`, or nothing. */}}
{{- define "outgate.holds" -}}
{{- $outer := splitList "/" (index . 0) -}}
{{- $inner := splitList "/" (index . 1) -}}
{{- $bits := int (last $outer) -}}
{{- $same := and (le $bits (int (last $inner))) (eq (contains ":" (first $outer)) (contains ":" (first $inner))) -}}
{{- if $same -}}
{{- $ours := fromJsonArray (include "outgate.groups" (first $outer)) -}}
{{- $theirs := fromJsonArray (include "outgate.groups" (first $inner)) -}}
{{- range $at, $group := $ours -}}
{{- /* Of each group so many bits on the right are not the network's. */}}
{{- $size := 1 -}}
{{- range until (int (sub 16 (max 0 (min 16 (sub $bits (mul 16 $at)))))) -}}{{- $size = mul 2 $size -}}{{- end -}}
{{- if ne (div (int64 $group) $size) (div (int64 (index $theirs $at)) $size) -}}{{- $same = false -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- if $same -}}true{{- end -}}
{{- end -}}

{{/* An address as its groups of 16 bits: two, or eight. JSON. */}}
{{- define "outgate.groups" -}}
{{- $groups := list -}}
{{- if contains ":" . -}}
{{- $halves := splitList "::" . -}}
{{- $left := without (splitList ":" (first $halves)) "" -}}
{{- $right := list -}}
{{- if gt (len $halves) 1 -}}{{- $right = without (splitList ":" (last $halves)) "" -}}{{- end -}}
{{- $absent := int (sub 8 (add (len $left) (len $right))) -}}
{{- if or (and (eq (len $halves) 1) (ne $absent 0)) (and (gt (len $halves) 1) (lt $absent 1)) -}}
{{- fail (printf "outgate: %s is no address" .) -}}
{{- end -}}
{{- range $left -}}{{- $groups = append $groups (int64 (printf "0x%s" .)) -}}{{- end -}}
{{- range until $absent -}}{{- $groups = append $groups 0 -}}{{- end -}}
{{- range $right -}}{{- $groups = append $groups (int64 (printf "0x%s" .)) -}}{{- end -}}
{{- else -}}
{{- $bytes := splitList "." . -}}
{{- range list 0 2 -}}
{{- $groups = append $groups (add (mul 256 (int64 (index $bytes .))) (int64 (index $bytes (add1 . | int)))) -}}
{{- end -}}
{{- end -}}
{{- toJson $groups -}}
{{- end -}}
