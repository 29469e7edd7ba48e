"""The objects that the stand-in for KubeRay makes of a RayCluster. Pure."""

from __future__ import annotations

import copy
import re
import shlex

from tests.loopback_cluster.api.store import now
from tests.loopback_cluster.api.values import amount
from tests.loopback_cluster.controllers.base import Object, owner

_OVERWRITE = "ray.io/overwrite-container-cmd"
_USUAL_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,51}[a-z0-9])?")  # RFC 1035, with room for suffixes
_PARAM_OF_PORT = {"gcs-server": "port", "dashboard": "dashboard-port", "client": "ray-client-server-port"}


def head_pod(found: Object) -> Object:
    """The head, with the GPUs of all groups."""
    spec = found["spec"]
    params = dict(spec["headGroupSpec"].get("rayStartParams") or {})
    pod, container = _pod(found, spec["headGroupSpec"]["template"], "head", "headgroup")
    groups = spec.get("workerGroupSpecs") or []
    own = float(params.get("num-gpus", _limit(container, "nvidia.com/gpu")))
    params["num-gpus"] = f"{own + sum(gpus(group) * hosts(group) for group in groups):g}"
    port = params.get("port", str(_USUAL_PORTS["gcs-server"]))
    _start_ray(found, container, {"head": "true", **params, "block": "true"})
    _set(container, RAY_ADDRESS=f"127.0.0.1:{port}", RAY_PORT=port)
    health = {
        "path": "/api/gcs_healthz",
        "port": int(params.get("dashboard-port", _USUAL_PORTS["dashboard"])),
    }
    probe = {"httpGet": health, "periodSeconds": 1, "timeoutSeconds": 2, "failureThreshold": 10}
    container.setdefault("readinessProbe", probe)
    return pod


def worker_pod(found: Object, group: Object) -> Object:
    """A worker, which sleeps."""
    pod, container = _pod(found, group["template"], "worker", group["groupName"])
    pod["metadata"]["generateName"] = f"{found['metadata']['name']}-{group['groupName']}-worker-"
    params = found["spec"]["headGroupSpec"].get("rayStartParams") or {}
    port = params.get("port", str(_USUAL_PORTS["gcs-server"]))
    address = f"{service_name(found)}.{found['metadata']['namespace']}.svc.cluster.local:{port}"
    start = {**(group.get("rayStartParams") or {}), "address": address, "block": "true"}
    _set(container, RAY_ADDRESS=address, RAY_PORT=port, KUBERAY_GEN_RAY_START_CMD=_command(start))
    container |= {"command": ["sleep", "infinity"], "args": []}
    return pod


def _pod(found: Object, template: Object, kind: str, group: str) -> tuple[Object, Object]:
    """The pod, and its first container."""
    name = found["metadata"]["name"]
    meta = copy.deepcopy(template.get("metadata") or {})
    labels = {
        "ray.io/is-ray-node": "yes",
        "ray.io/cluster": name,
        "ray.io/node-type": kind,
        "ray.io/group": group,
        "ray.io/identifier": f"{name}-{kind}"[:63],
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
    }
    meta["labels"] = (meta.get("labels") or {}) | labels
    meta["ownerReferences"] = [owner(found)]
    if kind == "head":
        meta["name"] = f"{name}-head"
    spec = copy.deepcopy(template["spec"])
    container = spec["containers"][0]
    mounts = container.setdefault("volumeMounts", [])
    if "/dev/shm" not in {mount["mountPath"] for mount in mounts}:
        spec.setdefault("volumes", []).append({"name": "shared-mem", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shared-mem", "mountPath": "/dev/shm"})
    _set(container, RAY_CLUSTER_NAME=name, RAY_NODE_TYPE_NAME=group, RAY_USAGE_STATS_KUBERAY_IN_USE="1")
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}, container


def _start_ray(found: Object, container: Object, params: dict[str, str]) -> None:
    generated = _command(params)
    _set(container, KUBERAY_GEN_RAY_START_CMD=generated)
    if (found["metadata"].get("annotations") or {}).get(_OVERWRITE) == "true":
        return
    own = shlex.join([*(container.get("command") or ()), *(container.get("args") or ())])
    script = f"ulimit -n 65536; {generated}" + (f" && {own}" if own else "")
    container |= {"command": ["/bin/bash", "-c", "--"], "args": [script]}


def _command(params: dict[str, str]) -> str:
    """``ray start`` with its parameters; those that are true are flags alone."""
    flags = []
    for key, value in params.items():
        if value.lower() in {"true", "false"} and key not in {"log-color", "include-dashboard"}:
            flags += [f"--{key}"] if value.lower() == "true" else []
        else:
            flags.append(f"--{key}={value}")
    return "ray start " + " ".join(flags)


def _set(container: Object, **env: str) -> None:
    known = {variable["name"] for variable in container.setdefault("env", [])}
    container["env"] += [{"name": key, "value": value} for key, value in env.items() if key not in known]


def _limit(container: Object, name: str) -> float:
    return amount(((container.get("resources") or {}).get("limits") or {}).get(name, "0"))


def gpus(group: Object) -> float:
    """GPUs of one pod of the group."""
    given = (group.get("rayStartParams") or {}).get("num-gpus")
    return float(given) if given else _limit(group["template"]["spec"]["containers"][0], "nvidia.com/gpu")


def hosts(group: Object) -> int:
    """How many pods the group has."""
    return int(max(group["replicas"], group["minReplicas"]) * group["numOfHosts"])


def service_name(found: Object) -> str:
    """Of the head's Service."""
    return f"{found['metadata']['name']}-head-svc"


def ports_of(found: Object) -> dict[str, int]:
    """Of the head: what its container lists, else the usual ones, where its parameters put them."""
    head = found["spec"]["headGroupSpec"]
    listed = head["template"]["spec"]["containers"][0].get("ports") or ()
    if named := {port["name"]: port["containerPort"] for port in listed if port.get("name")}:
        return {"metrics": _USUAL_PORTS["metrics"], **named}
    params = head.get("rayStartParams") or {}
    return {
        name: int(params.get(_PARAM_OF_PORT.get(name, ""), usual)) for name, usual in _USUAL_PORTS.items()
    }


def head_service(found: Object) -> Object:
    """The head's, without an address of its own."""
    name = found["metadata"]["name"]
    labels = {"ray.io/cluster": name, "ray.io/node-type": "head"}
    ports = [{"name": port, "port": number, "targetPort": number} for port, number in ports_of(found).items()]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": service_name(found), "labels": labels, "ownerReferences": [owner(found)]},
        "spec": {"clusterIP": "None", "selector": labels, "ports": ports},
    }


def refusal(found: Object) -> Object | None:
    """The event by which KubeRay tells that it will not act, and nothing else tells it."""
    meta, spec = found["metadata"], found["spec"]
    groups = [spec["headGroupSpec"], *(spec.get("workerGroupSpecs") or ())]
    if not _NAME.fullmatch(meta["name"]):
        part, why = "metadata", "RayCluster name should be a DNS1035 label of no more than 53 characters"
    elif any("labels" in (group.get("rayStartParams") or {}) for group in groups):
        part, why = "spec", "rayStartParams['labels'] is not supported"
    else:
        return None
    about = {key: found[key] for key in ("apiVersion", "kind")} | {key: meta[key] for key in ("name", "uid")}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{meta['name']}.{meta['uid']}"},
        "involvedObject": {**about, "namespace": meta["namespace"]},
        "type": "Warning",
        "reason": f"InvalidRayCluster{part.capitalize()}",
        "message": f"The RayCluster {part} is invalid {meta['namespace']}/{meta['name']}: {why}",
        "firstTimestamp": now(),
        "lastTimestamp": now(),
        "reportingComponent": "raycluster-controller",
        "source": {"component": "raycluster-controller"},
    }
