"""What happens to an object between its request and the store: what admission refuses, and what it adds."""

from __future__ import annotations

import base64
import copy
import random
import string
from typing import Any

from tests.loopback_cluster.api import pod_security
from tests.loopback_cluster.api.kinds import Kind
from tests.loopback_cluster.api.status import ApiFailure
from tests.loopback_cluster.api.store import Store, now
from tests.loopback_cluster.api.values import amount, as_micro_time

Object = dict[str, Any]

_LETTERS = string.ascii_lowercase + string.digits
_TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
_POD_DEFAULTS: Object = {
    "restartPolicy": "Always",
    "terminationGracePeriodSeconds": 30,
    "dnsPolicy": "ClusterFirst",
    "schedulerName": "default-scheduler",
    "serviceAccountName": "default",
    "enableServiceLinks": True,
    "securityContext": {},
    "priority": 0,
}
_CONTAINER_DEFAULTS: Object = {
    "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File",
}
_PROBE_DEFAULTS = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}
_MICRO_TIMES = {"V1Lease": ("acquireTime", "renewTime"), "CoreV1Event": ("eventTime",)}
_NODE_AWAY = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_PATIENCE_S = 300  # of a pod whose node is away


class Admission:
    """Completes and refuses new objects.

    :ivar services: how a Service's address begins; each cluster has its own part of 127.0.0.0/8.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.services = f"127.{random.randint(64, 126)}.{random.randint(0, 255)}"

    def make_namespace(self, name: str, labels: dict[str, str] | None = None) -> Object:
        """Make a namespace, with what a real one has from the start."""
        objects: list[tuple[str, Object]] = [
            ("serviceaccounts", {"kind": "ServiceAccount", "metadata": {"name": "default"}}),
            (
                "configmaps",
                {"kind": "ConfigMap", "metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": ""}},
            ),
        ]
        meta = {"name": name, "labels": {**(labels or {}), "kubernetes.io/metadata.name": name}}
        space: Object = {"apiVersion": "v1", "kind": "Namespace", "metadata": meta}
        made = self._store.add(("", "namespaces", "", name), {**space, "status": {"phase": "Active"}})
        for plural, new in objects:
            new["metadata"]["namespace"] = name
            self._store.add(("", plural, name, new["metadata"]["name"]), {"apiVersion": "v1", **new})
        return made

    def admit(self, kind: Kind, new: Object) -> None:
        """Complete a new object in place. Raises what a real server would refuse."""
        if kind.has_status:
            new.pop("status", None)
        if not kind.model:
            return
        self.complete(kind, new)
        if kind.plural == "pods":
            self._admit_pod(new)
        elif kind.plural == "services":
            self._admit_service(new)
        elif kind.plural == "persistentvolumeclaims":
            self._provision(new)
        elif kind.plural == "customresourcedefinitions":
            new["status"] = {"conditions": [_holds("NamesAccepted"), _holds("Established")]}
        elif kind.plural == "namespaces":
            new["status"] = {"phase": "Active"}

    def complete(self, kind: Kind, new: Object) -> None:
        """What is done to changed objects, too."""
        if kind.model == "V1Secret":
            new.setdefault("type", "Opaque")
            for key, text in (new.pop("stringData", None) or {}).items():
                new.setdefault("data", {})[key] = base64.b64encode(text.encode()).decode()
        holder = (new.get("spec") or {}) if kind.model == "V1Lease" else new
        for field in _MICRO_TIMES.get(str(kind.model), ()):
            if holder.get(field):
                holder[field] = as_micro_time(holder[field])

    def _admit_pod(self, pod: Object) -> None:
        meta, spec = pod["metadata"], pod["spec"]
        key = ("", "namespaces", "", meta["namespace"])
        pod_security.require(self._store.objects[key], pod)
        for field, value in _POD_DEFAULTS.items():
            spec.setdefault(field, copy.deepcopy(value))
        self._require_account(meta, spec)
        self._require_priority(meta, spec)
        for container in [*spec["containers"], *(spec.get("initContainers") or ())]:
            _default_container(container)
        for volume in spec.get("volumes") or ():
            if len(volume) == 1:
                volume["emptyDir"] = {}
        self._mount_token(meta, spec)
        tolerated = {toleration.get("key") for toleration in spec.setdefault("tolerations", [])}
        for taint in _NODE_AWAY:
            if not tolerated & {taint, None}:
                toleration = {"key": taint, "operator": "Exists", "effect": "NoExecute"}
                spec["tolerations"].append({**toleration, "tolerationSeconds": _PATIENCE_S})
        self._require_quota(pod)
        pod["status"] = {"phase": "Pending", "qosClass": "Burstable"}
        if spec.get("schedulingGates"):
            gated = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
            pod["status"]["conditions"] = [
                {**gated, "message": "Scheduling is blocked due to non-empty gates"}
            ]

    def _require_account(self, meta: Object, spec: Object) -> None:
        name = spec["serviceAccountName"]
        spec["serviceAccount"] = name
        if ("", "serviceaccounts", meta["namespace"], name) not in self._store.objects:
            why = f"error looking up service account {meta['namespace']}/{name}"
            said = f'pods "{meta["name"]}" is forbidden: {why}: serviceaccount "{name}" not found'
            raise ApiFailure(403, "Forbidden", said)

    def _require_priority(self, meta: Object, spec: Object) -> None:
        name = spec.get("priorityClassName")
        if not name:
            return
        key = ("scheduling.k8s.io", "priorityclasses", "", name)
        if key not in self._store.objects:
            said = f'pods "{meta["name"]}" is forbidden: no PriorityClass with name {name} was found'
            raise ApiFailure(403, "Forbidden", said)
        spec["priority"] = self._store.objects[key]["value"]

    def _mount_token(self, meta: Object, spec: Object) -> None:
        """The service account's token goes into every pod that does not refuse it."""
        account = self._store.objects["", "serviceaccounts", meta["namespace"], spec["serviceAccountName"]]
        asked = spec.get("automountServiceAccountToken")
        if asked is False or (asked is None and account.get("automountServiceAccountToken") is False):
            return
        name = "kube-api-access-" + "".join(random.choices(_LETTERS, k=5))
        sources = [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {
                "downwardAPI": {
                    "items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]
                }
            },
        ]
        spec.setdefault("volumes", []).append({"name": name, "projected": {"sources": sources}})
        for container in [*spec["containers"], *(spec.get("initContainers") or ())]:
            mounts = container.setdefault("volumeMounts", [])
            if _TOKEN_PATH not in {mount["mountPath"] for mount in mounts}:
                mounts.append({"name": name, "mountPath": _TOKEN_PATH, "readOnly": True})

    def _require_quota(self, pod: Object) -> None:
        """ResourceQuota: the number of pods, and what their containers request or are limited to."""
        namespace = pod["metadata"]["namespace"]
        others = [found for key, found in self._store.objects.items() if key[:3] == ("", "pods", namespace)]
        for key, quota in self._store.objects.items():
            if key[1:3] != ("resourcequotas", namespace):
                continue
            for counted, limit in (quota.get("spec") or {}).get("hard", {}).items():
                asked, used = _counted(counted, pod), sum(_counted(counted, other) for other in others)
                if asked and used + asked > amount(limit):
                    said = f"requested: {counted}={asked:g}, used: {counted}={used:g}"
                    said += f", limited: {counted}={limit}"
                    name = pod["metadata"]["name"]
                    why = f'pods "{name}" is forbidden: exceeded quota: {key[3]}, {said}'
                    raise ApiFailure(403, "Forbidden", why)

    def _admit_service(self, service: Object) -> None:
        spec = service["spec"]
        spec.setdefault("type", "ClusterIP")
        spec.setdefault("sessionAffinity", "None")
        if not spec.get("clusterIP"):
            taken = {
                found["spec"].get("clusterIP")
                for key, found in self._store.objects.items()
                if key[1] == "services"
            }
            free = (f"{self.services}.{low}" for low in range(1, 255))
            spec["clusterIP"] = next(address for address in free if address not in taken)
        spec["clusterIPs"] = [spec["clusterIP"]]
        for port in spec.get("ports") or ():
            port.setdefault("protocol", "TCP")
            port.setdefault("targetPort", port["port"])
        service["status"] = {"loadBalancer": {}}

    def _provision(self, claim: Object) -> None:
        """Bound at once where the cluster's only storage class is meant; else it waits for ever."""
        spec = claim["spec"]
        if spec.setdefault("storageClassName", "standard") != "standard":
            claim["status"] = {"phase": "Pending"}
            return
        spec["volumeName"] = "pvc-" + "".join(random.choices(_LETTERS, k=8))
        spec.setdefault("volumeMode", "Filesystem")
        capacity = spec["resources"]["requests"]
        claim["status"] = {"phase": "Bound", "accessModes": spec["accessModes"], "capacity": capacity}


def _default_container(container: Object) -> None:
    latest = ":" not in container["image"].rpartition("/")[2] or container["image"].endswith(":latest")
    container.setdefault("imagePullPolicy", "Always" if latest else "IfNotPresent")
    for field, value in _CONTAINER_DEFAULTS.items():
        container.setdefault(field, value)
    resources = container.setdefault("resources", {})
    # A limit without a request is a request, too.
    requests = (resources.get("limits") or {}) | (resources.get("requests") or {})
    if requests:
        resources["requests"] = requests
    for port in container.get("ports") or ():
        port.setdefault("protocol", "TCP")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if container.get(probe):
            container[probe] = _PROBE_DEFAULTS | container[probe]


def _counted(counted: str, pod: Object) -> float:
    """How much of a quota's line a pod takes: ``pods``, ``requests.nvidia.com/gpu``, ``limits.memory``."""
    if (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}:
        return 0
    if counted in {"pods", "count/pods"}:
        return 1
    kind, _, name = counted.partition(".")
    if kind not in {"requests", "limits"}:
        kind, name = "requests", counted
    containers = pod["spec"]["containers"]
    return sum(amount(((c.get("resources") or {}).get(kind) or {}).get(name, "0")) for c in containers)


def _holds(condition: str) -> Object:
    times = {"lastTransitionTime": now()}
    return {"type": condition, "status": "True", "reason": condition, "message": "", **times}
