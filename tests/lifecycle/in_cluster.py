"""How workers of the matrix are launched in the loopback cluster, whose pods share this machine's ports.

Each run's ``conf`` has ports of its own. No container has a memory limit: to watch one, the loopback's
kubelet reads every process of the machine several times a second.
"""

from __future__ import annotations

from typing import Any

WORKER_IMAGE = "registry.test/arcadia-worker:0"
RUNNER_IMAGE = "registry.test/arcadia-runner:0"
RAY_IMAGE = "registry.test/ray:0"


def _port(name: str) -> str:
    return f"{{{{ dag_run.conf['{name}'] }}}}"


PORTS = ("port", "ray_port", "dashboard_port")
"""Keys of a run's conf."""
_URL = f"http://127.0.0.1:{_port('port')}"
_GPU = {"limits": {"nvidia.com/gpu": "1"}}

POD: dict[str, Any] = {
    "image": WORKER_IMAGE,
    "resources": _GPU,
    "host": "127.0.0.1",
    "port": _port("port"),
    "worker_url": _URL,
}
RESOURCE: dict[str, Any] = {
    "resources": _GPU,
    "runner": {"image": RUNNER_IMAGE},
    "additional_envs": [
        {"name": "ARCADIA_HOST", "value": "127.0.0.1"},
        {"name": "ARCADIA_PORT", "value": _port("port")},
    ],
    "worker_url": _URL,
}
RAY_CLUSTER: dict[str, Any] = {
    "image": RAY_IMAGE,
    "ray_version": "2.60.0",
    "head_resources": {"limits": {"cpu": "1"}},
    "port": _port("ray_port"),
    "dashboard_port": _port("dashboard_port"),
    "ray_start_params": {"dashboard-host": "127.0.0.1"},
    "startup_timeout": 90,
}
