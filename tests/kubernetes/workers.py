"""A worker's life in the cluster through the operators, as a DAG has it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from kubernetes import client  # noqa: TID253

from airflow_arcadia.kubernetes.kinds import RAY_CLUSTER, WORKER
from airflow_arcadia.launchers.pod.settings import DEFAULT_WORKER_URL
from airflow_arcadia.operators.worker import (
    ArcadiaLaunchWorkerOperator,
    ArcadiaReserveWorkerOperator,
    ArcadiaTeardownWorkerOperator,
)
from airflow_arcadia.ports import free_port
from airflow_arcadia.triggers.worker import ArcadiaModelReadyTrigger
from tests.airflow_context import make_context, set_connection
from tests.conftest import wait_for
from tests.loopback_cluster.cluster import KUBECONFIG_VARIABLE, Cluster

STAND_IN = """
import http.server, json, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
MODEL = os.environ["FASTCHAT_REGISTRATION_MODEL_NAME"]
FILE = os.environ.get("ARCADIA_API_KEY_FILE")
KEY = "Bearer " + open(FILE).read() if FILE else None
ANSWERS = {
    "/worker_get_status": {"model_names": [MODEL]}, "/model_details": {"context_length": 512},
    "/v1/completions": {"choices": [{"text": "1"}]},
}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.answer({})
    def do_POST(self):
        known = self.path == "/worker_get_status" or KEY in {None, self.headers["Authorization"]}
        self.answer(ANSWERS.get(self.path, {}), 200 if known else 401)
    def answer(self, body, status=200):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())
    def log_message(self, *_): pass
print("serving", flush=True)
where = os.environ["ARCADIA_HOST"], int(os.environ["ARCADIA_PORT"])
http.server.ThreadingHTTPServer(where, Handler).serve_forever()
"""
"""Answers as a worker that has loaded its model: for tests of what surrounds it."""


WITHIN_S = 5.0
"""Longest that a reason may take to be told after the cluster said it."""


@dataclass
class Run:
    """One DAG run with one worker group.

    :param run_id: makes the lease's name.
    """

    cluster: Cluster
    run_id: str = "manual__1"
    pod: Mapping[str, Any] = field(default_factory=dict)
    lease: str = ""
    handle: dict[str, Any] = field(default_factory=dict)

    def reserve(self) -> str:
        """The lease's name."""
        operator = ArcadiaReserveWorkerOperator(task_id="reserve", group="answer")
        self.lease = operator.execute(make_context(self.run_id))
        return self.lease

    def launch(self, *, try_number: int = 1, **kwargs: Any) -> dict[str, Any]:
        """The handle."""
        usual: dict[str, Any] = {"task_id": "launch", "lease": self.lease, "model": "m/tiny"}
        if "custom_resource" not in kwargs:
            usual["pod"] = {"image": self.cluster.python_image, **self.pod}
        operator = ArcadiaLaunchWorkerOperator(**{**usual, **kwargs})
        self.handle = operator.execute(make_context(self.run_id, try_number=try_number))
        return self.handle

    def wait(self, startup_timeout: float = 60.0, poll_interval: float = 0.5) -> str | None:
        """Why the model will not be ready, or None when it is."""
        trigger = ArcadiaModelReadyTrigger(
            handle=self.handle,
            arcadia_conn_id="arcadia_default",
            started_at=time.time(),
            startup_timeout=startup_timeout,
            poll_interval=poll_interval,
        )
        failed: str | None = asyncio.run(trigger.wait()).payload["failed"]
        return failed

    def teardown(self, grace: float = 5.0) -> None:
        """End everything."""
        operator = ArcadiaTeardownWorkerOperator(task_id="teardown", lease=self.lease, grace=grace)
        operator.execute(make_context(self.run_id))

    @property
    def objects(self) -> list[str]:
        """What the cluster still has of this run."""
        labels = {"label_selector": f"airflow-arcadia/lease={self.lease}"}
        core, namespace = self.cluster.core, self.cluster.namespace
        lists = (
            core.list_namespaced_pod(namespace, **labels),
            core.list_namespaced_service(namespace, **labels),
            core.list_namespaced_secret(namespace, **labels),
            self.cluster.coordination.list_namespaced_lease(namespace, **labels),
        )
        found = [f"{listed.kind} {item.metadata.name}" for listed in lists for item in listed.items]
        for kind in (RAY_CLUSTER, WORKER):
            with contextlib.suppress(client.ApiException):  # a kind the cluster does not know
                listed = self.cluster.custom.list_namespaced_custom_object(
                    kind.group, kind.version, namespace, kind.plural, **labels
                )
                found += [f"{kind.kind} {item['metadata']['name']}" for item in listed["items"]]
        return found


def told_in_time(said: Callable[[], Any], wait: Callable[[], str | None]) -> str:
    """Why a wait failed; fails itself when that came later than allowed after the cluster's own words.

    :param said: whether the cluster has said it.
    :param wait: returns why it failed.
    """
    times: dict[str, float] = {}

    def look() -> None:
        wait_for(said, 90, "the cluster to say it")
        times["cluster"] = time.monotonic()

    looking = threading.Thread(target=look)
    looking.start()
    failed = wait()
    times["wait"] = time.monotonic()
    looking.join()
    assert failed is not None
    assert times["wait"] - times["cluster"] < WITHIN_S
    return failed


def stand_in(cluster: Cluster) -> dict[str, Any]:
    """Pod settings of a worker that is quick to be ready."""
    container = {"name": "worker", "command": ["python3", "-c", STAND_IN]}
    return where() | {"full_pod_spec": {"spec": {"containers": [container]}}}


def where() -> dict[str, Any]:
    """Where a worker listens and is reached, as a pod's settings."""
    if not pods_share_an_address():
        url = os.environ.get("ARCADIA_TEST_WORKER_URL", DEFAULT_WORKER_URL)
        return {"host": "0.0.0.0", "worker_url": url}
    port = free_port()
    found = {"host": "127.0.0.1", "port": port, "worker_url": f"http://127.0.0.1:{port}"}
    return found | {"fastchat_port": free_port()}


def pods_share_an_address() -> bool:
    """Whether all pods have this machine's 127.0.0.1, so that each needs a port of its own.

    So it is in the loopback cluster, and wherever ARCADIA_TEST_SHARED_NETWORK says it.
    """
    named = bool(os.environ.get(KUBECONFIG_VARIABLE))
    return not named or bool(os.environ.get("ARCADIA_TEST_SHARED_NETWORK"))


def connect(monkeypatch: pytest.MonkeyPatch, cluster: Cluster, **more: Any) -> None:
    """The ``arcadia`` connection to the cluster."""
    more = {"arcadia_config_yaml": "rayClusters: []", "namespace": cluster.namespace, **more}
    set_connection(monkeypatch, kubernetes_conn_id="kubernetes_default", **more)
