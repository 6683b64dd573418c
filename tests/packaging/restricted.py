"""What the Pod Security Standard `restricted` asks of every container, init containers included.

The one exception is the init container of `app.mode: redirect`, which the user has asked for: root, and NET_ADMIN, and nothing more.
"""

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def breaches(spec):
    """All that a pod does against it."""
    found = []
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            found.append(key)
    for volume in spec.get("volumes") or []:
        kinds = set(volume) - {"name"}
        if not kinds <= VOLUMES:
            found.append(f"volume {volume['name']}: {kinds}")
    for container in (spec.get("initContainers") or []) + spec["containers"]:
        context = container.get("securityContext") or {}
        wrong = []
        redirects = container["name"] == "outgate-redirect" and (container.get("args") or [])[:2] == ["redirect", "setup"]
        if context.get("privileged"):
            wrong.append("privileged")
        if context.get("allowPrivilegeEscalation") is not False:
            wrong.append("allowPrivilegeEscalation")
        if not redirects and (context.get("runAsNonRoot") is not True or context.get("runAsUser", 1) == 0):
            wrong.append("root")
        capabilities = context.get("capabilities") or {}
        if capabilities.get("drop") != ["ALL"] or set(capabilities.get("add") or []) - {"NET_ADMIN" if redirects else "NET_BIND_SERVICE"}:
            wrong.append("capabilities")
        if (context.get("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
            wrong.append("seccompProfile")
        if any(port.get("hostPort") for port in container.get("ports") or []):
            wrong.append("hostPort")
        found += [f"{container['name']}: {one}" for one in wrong]
    return found
