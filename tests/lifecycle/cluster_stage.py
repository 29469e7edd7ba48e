"""A whole Airflow whose workers are in a loopback cluster, with the lease watcher as it is deployed there."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from airflow_arcadia.kubernetes.leases import WARM
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.ports import free_port
from tests.conftest import ROOT
from tests.deploy.manifests import documents
from tests.e2e.scheduled_airflow import scheduled_airflow
from tests.lifecycle.in_cluster import PORTS, RAY_IMAGE, RUNNER_IMAGE, WORKER_IMAGE
from tests.lifecycle.stage import HERE, Run, Stage, airflow_variables, role_of, stopping, write_inputs
from tests.loopback_cluster.api.store import Key, Object
from tests.loopback_cluster.cluster import TOKEN, Cluster, Loopback, image_of, write_kubeconfig
from tests.loopback_cluster.controllers.arcadia import CONFIG, Arcadia
from tests.loopback_cluster.controllers.base import Controller
from tests.loopback_cluster.controllers.kuberay import KubeRay
from tests.loopback_cluster.kubelet.processes import MARK

NAMESPACE = "tests"
WATCHER_TOKEN = "of-the-lease-watcher"
_LOOK_S = 0.5
_FIRST_PORT, _LAST_PORT = 21100, 31000
"""Below those that Linux gives to outgoing connections: a run's port is free until its worker listens."""
_MARK = re.compile(rb"(?:^|\0)" + MARK.encode() + rb"=([^/\0]+)")


@dataclass(frozen=True)
class Look:
    """The cluster at one moment.

    :param objects: by key (group, plural, namespace, name); events left out.
    :param processes: by their pod's uid.
    """

    at: float
    objects: dict[Key, Object]
    processes: dict[str, list[int]]


@dataclass
class ClusterStage(Stage):
    """A stage whose workers are pods, Arcadia's Workers, and pods on a Ray cluster made for the run."""

    cluster: Cluster = field(kw_only=True)
    loopback: Loopback = field(kw_only=True)
    runs: list[Run] = field(default_factory=list)
    pods: dict[str, set[str]] = field(default_factory=dict)
    """Uids of the pods that a lease had, by lease: their processes may outlive them."""
    _look: Look = Look(-1.0, {}, {})
    _lock: Any = field(default_factory=threading.Lock)
    _ports: Iterator[int] = field(default_factory=lambda: itertools.cycle(range(_FIRST_PORT, _LAST_PORT)))

    def start(self, dag_id: str, conf: Mapping[str, Any]) -> Run:
        """Start a run with ports of its own."""
        run = super().start(dag_id, {**conf, **{name: self._port() for name in PORTS}})
        self.runs.append(run)
        return run

    def release(self) -> None:
        """Let every run go on that is held."""
        for run in self.runs:
            run.release()

    def leftovers(self, run: Run) -> list[str]:
        """Everything of the run that is still there: objects of the cluster, and processes of its pods."""
        look, found = self.look(), []
        for lease in self.leases(run):
            found += [f"{key[1]} {key[3]}" for key in self._of(lease, look)]
            for pid in self._pids(lease, look):
                with contextlib.suppress(psutil.Error):
                    found.append(f"process {role_of(psutil.Process(pid))}")
        return sorted(found)

    def processes(self, run: Run, role: str) -> list[psutil.Process]:
        """The run's processes of that role: ``supervisor``, ``server`` or ``engine``."""
        found, look = [], self.look()
        for pid in (pid for lease in self.leases(run) for pid in self._pids(lease, look)):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                found += [process] if role_of(process) == role else []
        return found

    def note_shared_memory(self) -> None:
        """Remember the runs' pods, and their files under ``/dev/shm``, which a real pod has to itself."""
        look = self.look()
        for lease in (lease for run in self.runs for lease in self.leases(run)):
            self._of(lease, look)
            files = {f"/dev/shm/psm_life{pid}" for pid in self._pids(lease, look)}
            self.engines.setdefault(lease, set()).update(files)

    def note_uses(self) -> None:
        """Remember which warm workers a run uses: once it has ended, nothing tells."""
        for key, item in self.look().objects.items():
            for use in json.loads(item["warm"] or "{}").get("uses", ()):
                self.shared.setdefault(use["user"], set()).add(key[3])

    def names(self, run: Run, plural: str) -> list[str]:
        """Names of the run's objects of that kind."""
        return [key[3] for key in self._of(self.lease(run), self.look()) if key[1] == plural]

    def look(self) -> Look:
        """The cluster as it is now, or was half a second ago: many runs look at it side by side.

        Read past the API server, which may be away.
        """
        with self._lock:
            if time.monotonic() > self._look.at + _LOOK_S:
                objects = self.loopback.call(self._objects())
                self._look = Look(time.monotonic(), objects, _processes())
            return self._look

    async def _objects(self) -> dict[Key, Object]:
        store = self.loopback.api.store
        return {
            key: {
                "uid": found["metadata"]["uid"],
                "labels": found["metadata"].get("labels") or {},
                "warm": (found["metadata"].get("annotations") or {}).get(WARM),
            }
            for key, found in store.objects.items()
            if key[2] == NAMESPACE and key[1] != "events"
        }

    def _of(self, lease: str, look: Look) -> list[Key]:
        """The run's objects: all of them have its lease's name in their own, or as a label."""
        found = [
            key
            for key, item in look.objects.items()
            if key[3].startswith(lease) or lease in item["labels"].values()
        ]
        uids = {look.objects[key]["uid"] for key in found if key[1] == "pods"}
        self.pods.setdefault(lease, set()).update(uids)
        return found

    def _pids(self, lease: str, look: Look) -> list[int]:
        return [pid for uid in self.pods.get(lease, ()) for pid in look.processes.get(uid, ())]

    def _port(self) -> int:
        for port in self._ports:
            with contextlib.suppress(OSError), socket.socket() as listening:
                listening.bind(("127.0.0.1", port))
                return port
        raise AssertionError("no port is free")


def _processes() -> dict[str, list[int]]:
    """Processes of containers, by their pod's uid."""
    found: dict[str, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # another user's, or one that ends meanwhile
                if marked := _MARK.search((entry / "environ").read_bytes()):
                    found.setdefault(marked[1].decode(), []).append(int(entry.name))
    return found


@contextlib.contextmanager
def cluster_stage(folder: Path, *, parallelism: int = 8) -> Iterator[ClusterStage]:
    """Start the cluster, the lease watcher and the Airflow, and end them and whatever a case has left."""
    write_inputs(folder)
    extra = {
        "arcadia_config_yaml": "rayClusters: []",
        "kubernetes_conn_id": "kubernetes_default",
        "namespace": NAMESPACE,
    }
    env = airflow_variables(folder, extra, parallelism)
    with loopback_cluster(folder) as cluster, lease_watcher(folder, cluster):
        loopback = cluster.loopback
        assert loopback is not None
        env["AIRFLOW_CONN_KUBERNETES_DEFAULT"] = json.dumps(cluster.airflow_connection)
        home = folder / "airflow"
        with scheduled_airflow(home, HERE / "cluster_dags", free_port(), env) as airflow:
            full = {**os.environ, **env, "AIRFLOW_HOME": str(home)}
            store = LeaseStore(folder / "unused")
            stage = ClusterStage(airflow, store, folder, full, cluster=cluster, loopback=loopback)
            with stopping(stage):
                yield stage


@contextlib.contextmanager
def loopback_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster with the operators' stand-ins, in which Airflow has the rights of ``deploy/rbac.yaml``."""
    python, path = sys.executable, f"{HERE / 'stand_in'}:{ROOT}"
    entry = ("python3", "-m", "airflow_arcadia.runtime")
    ray_path = f"{HERE / 'stand_in_ray'}:{Path(python).parent}:/usr/local/bin:/usr/bin:/bin"
    images = {
        WORKER_IMAGE: image_of(python, PYTHONPATH=path),
        RUNNER_IMAGE: image_of(python, *entry, PYTHONPATH=path),
        RAY_IMAGE: image_of(python, PATH=ray_path),
    }
    loopback = Loopback(folder / "cluster", images, {"nvidia.com/gpu": "64"})
    loopback.start()
    try:
        kubeconfig = write_kubeconfig(folder / "kubeconfig", loopback.url)
        cluster = Cluster(kubeconfig, NAMESPACE, WORKER_IMAGE, WORKER_IMAGE, loopback)
        _configure_arcadia(cluster)
        operators: tuple[type[Controller], ...] = (Arcadia, KubeRay)
        for operator in operators:
            cluster.run_controller(operator)
        loopback.obey(documents("rbac.yaml"))
        roles = [item for item in documents("lease-watcher.yaml") if item["kind"] == "Role"]
        loopback.obey(roles, token=WATCHER_TOKEN)
        yield cluster
    finally:
        loopback.stop()


def _configure_arcadia(cluster: Cluster) -> None:
    """Arcadia's own configuration, which its operator reads."""
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": CONFIG},
        "data": {"config": yaml.safe_dump({"gateway": {"controller": "http://127.0.0.1:9"}})},
    }
    cluster.core.create_namespaced_config_map(NAMESPACE, body)


@contextlib.contextmanager
def lease_watcher(folder: Path, cluster: Cluster) -> Iterator[None]:
    """The lease watcher with the command and the Role of its Deployment. Raises when it ends by itself."""
    deployment = next(d for d in documents("lease-watcher.yaml") if d["kind"] == "Deployment")
    command = deployment["spec"]["template"]["spec"]["containers"][0]["command"]
    kubeconfig = folder / "kubeconfig-of-the-lease-watcher"
    kubeconfig.write_text(cluster.kubeconfig.read_text().replace(TOKEN, WATCHER_TOKEN))
    env = {**os.environ, "KUBECONFIG": str(kubeconfig), "PYTHONPATH": str(ROOT)}
    with (folder / "lease-watcher.log").open("ab") as log:
        argv = [sys.executable, *command[1:], "--namespace", cluster.namespace]
        process = subprocess.Popen(argv, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            yield
            assert process.poll() is None, f"the lease watcher ended: see {log.name}"
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
