"""What happens to an object between its request and the store: defaults, quota, and a first status."""

from __future__ import annotations

import base64
from typing import Any

from tests.kubernetes.api.kinds import Kind
from tests.kubernetes.api.status import ApiFailure, invalid
from tests.kubernetes.api.store import Store, now

_PROBE = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}


def admit(store: Store, kind: Kind, new: dict[str, Any]) -> None:
    """Complete a new object in place. Raises what a real server would refuse."""
    if kind.has_status and not kind.model:
        new.pop("status", None)
    if kind.plural == "pods":
        _within_quota(store, new)
        _default_pod(new)
    if kind.plural == "secrets":
        data = new.setdefault("data", {})
        for key, text in new.pop("stringData", {}).items():
            data[key] = base64.b64encode(text.encode()).decode()
    if kind.plural == "customresourcedefinitions":
        conditions = [
            {"type": t, "status": "True", "reason": "ok", "message": "", "lastTransitionTime": now()}
            for t in ("NamesAccepted", "Established")
        ]
        new["status"] = {"conditions": conditions}


def _default_pod(pod: dict[str, Any]) -> None:
    spec = pod["spec"]
    if not spec["containers"]:
        raise invalid("Pod", pod["metadata"]["name"], "spec.containers: Required value")
    defaults = {"restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst"}
    for key, value in defaults.items():
        spec.setdefault(key, value)
    volumes = {volume["name"] for volume in spec.get("volumes") or ()}
    for container in [*spec["containers"], *(spec.get("initContainers") or ())]:
        for mount in container.get("volumeMounts") or ():
            if mount["name"] not in volumes:
                where = f'spec.containers.volumeMounts: Not found: "{mount["name"]}"'
                raise invalid("Pod", pod["metadata"]["name"], where)
        resources = container.setdefault("resources", {})
        # A limit without a request is a request, too; extended resources must be equal.
        requests = resources.get("limits", {}) | resources.get("requests", {})
        if requests:
            resources["requests"] = requests
        for name, amount in requests.items():
            if "/" in name and resources.get("limits", {}).get(name) != amount:
                where = f"spec.containers.resources.requests: {name} must equal its limit"
                raise invalid("Pod", pod["metadata"]["name"], where)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if container.get(probe):
                container[probe] = _PROBE | container[probe]
    pod["status"] = {"phase": "Pending", "qosClass": "Burstable"}


def _within_quota(store: Store, pod: dict[str, Any]) -> None:
    """ResourceQuota, as far as it counts pods."""
    namespace = pod["metadata"]["namespace"]
    for key, quota in store.objects.items():
        limit = (quota.get("spec") or {}).get("hard", {}).get("pods") if key[1] == "resourcequotas" else None
        if limit is None or key[2] != namespace:
            continue
        used = sum(1 for other in store.objects if other[1:3] == ("pods", namespace))
        if used >= int(limit):
            name = pod["metadata"]["name"]
            raise ApiFailure(
                403,
                "Forbidden",
                f'pods "{name}" is forbidden: exceeded quota: {key[3]}, requested: pods=1, used: '
                f"pods={used}, limited: pods={limit}",
            )
