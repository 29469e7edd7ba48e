"""One contract for all launchers: a process of this machine, a pod, Arcadia's Worker."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, aclosing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import requests

from airflow_arcadia.exceptions import LeaseError
from airflow_arcadia.hooks.arcadia import ArcadiaHook
from airflow_arcadia.kubernetes.cleanup import collect
from airflow_arcadia.kubernetes.kinds import WORKER_LABEL, Object
from airflow_arcadia.kubernetes.leases import KubernetesLeases
from airflow_arcadia.kubernetes.pod_template import CACHE_PATH
from airflow_arcadia.launchers.arcadia_worker.launcher import CustomResourceLauncher
from airflow_arcadia.launchers.arcadia_worker.settings import WorkerResourceSettings
from airflow_arcadia.launchers.base import Launcher, Stops
from airflow_arcadia.launchers.pod.launcher import PodLauncher
from airflow_arcadia.launchers.pod.settings import PodSettings
from airflow_arcadia.launchers.process import ProcessLauncher
from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import Leases, LeaseStore
from airflow_arcadia.processes import end, find_marked
from airflow_arcadia.readiness import ProcessObservation
from airflow_arcadia.worker import WorkerHandle, WorkerSpec
from tests.conftest import unique_identity, wait_for
from tests.kubernetes import arcadia
from tests.kubernetes.workers import connect, where
from tests.loopback_cluster.cluster import Cluster

pytestmark = pytest.mark.cluster  # its fixture is asked for by name, which no marker follows from
WORKER = """
import http.server, os, pathlib, signal, sys, threading
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
DEAD = pathlib.Path(os.environ["DEAD"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def do_POST(self):
        DEAD.touch()
        self.do_GET()
        threading.Thread(target=self.server.shutdown).start()
    def log_message(self, *_): pass
if not DEAD.exists():
    print("serving", flush=True)
    where = os.environ["ARCADIA_HOST"], int(os.environ["ARCADIA_PORT"])
    http.server.ThreadingHTTPServer(where, Handler).serve_forever()
raise MemoryError("the cause")
"""
"""Serves until it is sent a request to die; however often it is started again, it stays dead."""

GRACE_S = 5.0
SECRETS = {"api-key": "the-key", "batch-token": "the-token"}
KNOWN_LATER = {"pid", "started_at", "url", "uid"}
"""Of a handle's ``where``: what is not known yet when the intention is recorded."""


@dataclass
class Place:
    """Where one launcher runs a worker.

    :param launcher: a new one each time: nothing may be kept in its memory.
    :param left: what is there of the worker.
    :param out_of_sight: makes it impossible to see the worker, for a while; the handle to look by.
    """

    launcher: Callable[[], Launcher]
    leases: Leases
    lease: Lease
    spec: WorkerSpec
    left: Callable[[], list[str]]
    out_of_sight: Callable[[WorkerHandle], AbstractContextManager[WorkerHandle]]

    def stop(self, where: Mapping[str, Any], *, grace_s: float) -> list[str]:
        """End the worker as a teardown does, and keep the lease; what is still there."""
        launcher = self.launcher()
        if isinstance(launcher, Stops):
            return list(launcher.stop(where, grace_s=grace_s))
        return ArcadiaHook().kubernetes.run(
            lambda session: collect(session, self.lease.name, grace_s=grace_s, keep_lease=True)
        )

    def launch(self) -> WorkerHandle:
        """The handle, as the next task gets it."""
        held = self.leases.update(self.lease.name, lambda found: found.renew(time.time()))
        handle = self.launcher().launch(self.spec, held, ray=None)
        text = json.dumps(handle.to_dict())
        back = WorkerHandle.from_dict(json.loads(text))
        assert json.dumps(back.to_dict()) == text
        return back

    def observe(self, handle: WorkerHandle) -> ProcessObservation:
        """What a new launcher sees."""
        return asyncio.run(self.launcher().observe(handle))

    def wait_until_it_serves(self, handle: WorkerHandle) -> None:
        """Until its port answers."""

        def answers() -> bool:
            try:
                return requests.get(handle.url, timeout=1).ok
            except requests.ConnectionError:
                return False

        wait_for(answers, 30, "the worker to serve")

    def kill(self, handle: WorkerHandle) -> None:
        """Let the worker's program end by an error."""
        self.wait_until_it_serves(handle)
        assert requests.post(handle.url, timeout=5).ok


def process(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """On this machine, with a Python that runs our worker whatever it is told to run."""
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable} -u\n{WORKER}")
    python.chmod(0o755)
    store: LeaseStore = request.getfixturevalue("store")
    held = store.reserve(unique_identity(), time.time())
    request.addfinalizer(lambda: end(None, held.name, grace_s=0) and None)

    def left() -> list[str]:
        return [str(p.pid) for p in find_marked(held.name)]

    @contextmanager
    def out_of_sight(handle: WorkerHandle) -> Iterator[WorkerHandle]:
        """Known only by what was written down before it ran, when nobody knew its pid."""
        where = {key: value for key, value in handle.where.items() if key not in KNOWN_LATER}
        yield replace(handle, where=where)

    def launcher() -> ProcessLauncher:
        return ProcessLauncher(store, str(python), secrets=SECRETS)

    return Place(launcher, store, held, spec(held, tmp_path), left, out_of_sight)


def pod(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """In a cluster."""
    cluster, leases, held = in_cluster(request)
    settings = PodSettings(image=cluster.python_image, **where())

    def with_our_worker(manifest: Object) -> Object:
        manifest["spec"]["containers"][0]["command"] = ["python3", "-u", "-c", WORKER]
        return manifest

    def launcher() -> PodLauncher:
        return PodLauncher(ArcadiaHook().kubernetes, leases, settings, SECRETS, with_our_worker)

    # In a volume of the container's: it is there after a restart.
    return in_sight_of(request, launcher, leases, held, spec(held, Path(CACHE_PATH)))


def custom_resource(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """In a cluster where Arcadia acts."""
    cluster, leases, held = in_cluster(request)
    arcadia.start_arcadia(cluster, runner=WORKER)
    settings = WorkerResourceSettings.parse(arcadia.made_here())

    def launcher() -> CustomResourceLauncher:
        return CustomResourceLauncher(ArcadiaHook().kubernetes, leases, settings, SECRETS)

    return in_sight_of(request, launcher, leases, held, spec(held, Path("/data/models")))


def in_cluster(request: pytest.FixtureRequest) -> tuple[Cluster, KubernetesLeases, Lease]:
    cluster: Cluster = request.getfixturevalue("cluster")
    connect(request.getfixturevalue("monkeypatch"), cluster)
    leases = KubernetesLeases(ArcadiaHook().kubernetes)
    return cluster, leases, leases.reserve(unique_identity(), time.time())


def in_sight_of(
    request: pytest.FixtureRequest,
    launcher: Callable[[], Launcher],
    leases: KubernetesLeases,
    held: Lease,
    spec: WorkerSpec,
) -> Place:
    """In a cluster, whose API server may be away."""
    cluster: Cluster = request.getfixturevalue("cluster")

    @contextmanager
    def out_of_sight(handle: WorkerHandle) -> Iterator[WorkerHandle]:
        with request.getfixturevalue("loopback").api_away():
            yield handle

    return Place(launcher, leases, held, spec, lambda: objects(cluster, held.name), out_of_sight)


def spec(lease: Lease, folder: Path) -> WorkerSpec:
    return WorkerSpec(name=lease.name, model="org/model", additional_envs={"DEAD": str(folder / "dead")})


def objects(cluster: Cluster, name: str) -> list[str]:
    """Everything that carries Arcadia's label of that worker."""
    chosen = {"label_selector": f"{WORKER_LABEL}={name}"}
    lists = (
        cluster.core.list_namespaced_pod(cluster.namespace, **chosen),
        cluster.core.list_namespaced_service(cluster.namespace, **chosen),
    )
    resources = [w["metadata"]["name"] for w in arcadia.workers(cluster) or ()]
    return [item.metadata.name for found in lists for item in found.items] + resources


@pytest.fixture(params=[process, pod, custom_resource], ids=lambda made: made.__name__)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    made: Place = request.param(request, tmp_path)
    yield made
    for item in (made.leases.read(made.lease.name) or made.lease).owned:
        made.stop(item.where, grace_s=1)
    wait_for(lambda: made.left() == [], 60, "all of it to be gone")


def test_a_launched_worker_lives(place: Place):
    handle = place.launch()
    assert handle.launcher == place.launcher().name
    assert place.observe(handle).alive is True
    place.wait_until_it_serves(handle)
    assert place.observe(handle).alive is True


def test_launching_again_finds_the_same_worker(place: Place):
    first = place.launch()
    assert place.launch() == first
    place.wait_until_it_serves(first)
    there = place.left()
    assert place.launch() == first
    assert place.left() == there


def test_a_later_task_reads_what_the_worker_was_launched_with(place: Place):
    handle = place.launch()
    known = asyncio.run(place.launcher().credentials(handle))
    assert (known.api_key, known.batch_token) == ("the-key", "the-token")
    assert "the-" not in json.dumps(handle.to_dict()) + repr(known)


def test_the_watch_tells_that_it_lives_and_that_it_died(place: Place):
    handle = place.launch()

    async def until_it_died() -> ProcessObservation:
        killing: asyncio.Future[None] | None = None
        async with aclosing(place.launcher().watch(handle)) as watch:  # type: ignore[type-var]
            async for seen in watch:
                if seen.alive and killing is None:
                    killing = asyncio.ensure_future(asyncio.to_thread(place.kill, handle))
                if seen.alive is False:
                    assert killing is not None, "dead before it was killed"
                    await killing
                    return seen
        raise AssertionError("the watch ended")

    assert asyncio.run(asyncio.wait_for(until_it_died(), 60)).alive is False


def test_its_log_is_told_from_the_beginning_to_the_end_and_once(place: Place):
    handle = place.launch()

    async def told() -> list[str]:
        seen: list[str] = []
        async with aclosing(place.launcher().log_lines(handle)) as lines:  # type: ignore[type-var]
            async for line in lines:
                seen.append(line)
                if len(seen) == 1:
                    await asyncio.to_thread(place.kill, handle)
                if line == "MemoryError: the cause":
                    return seen
        raise AssertionError("the log ended")

    first, second, *_, last = asyncio.run(asyncio.wait_for(told(), 60))
    assert (first, last) == ("serving", "MemoryError: the cause")
    assert second == "Traceback (most recent call last):"


def test_a_worker_that_cannot_be_read_is_not_one_that_is_gone(place: Place):
    handle = place.launch()
    with place.out_of_sight(handle) as unseen:
        assert place.observe(unseen).alive is None

        async def first() -> ProcessObservation:
            async with aclosing(place.launcher().watch(unseen)) as watch:  # type: ignore[type-var]
                async for seen in watch:
                    return seen
            raise AssertionError("the watch ended")

        assert asyncio.run(asyncio.wait_for(first(), 30)).alive is None
    assert place.observe(handle).alive is True


def test_what_was_only_intended_is_stopped_without_ado(place: Place):
    handle = place.launch()
    place.stop(handle.where, grace_s=GRACE_S)
    lease = place.leases.read(place.lease.name)
    assert lease is not None
    intended = {key: value for key, value in lease.owned[0].where.items() if key not in KNOWN_LATER}
    assert place.stop(intended, grace_s=GRACE_S) == []


def test_a_worker_that_died_says_how_and_shows_its_last_lines(place: Place):
    handle = place.launch()
    place.kill(handle)

    def dead() -> ProcessObservation | None:
        seen = place.observe(handle)
        return seen if seen.alive is False and any("the cause" in line for line in seen.log_tail) else None

    seen: ProcessObservation = wait_for(dead, 30, "its end to be seen")
    assert "MemoryError: the cause" in "\n".join(seen.log_tail)
    assert seen.exit_reason or seen.trouble


def test_stopping_leaves_nothing_however_often_it_is_called(place: Place):
    handle = place.launch()
    place.wait_until_it_serves(handle)
    assert place.left() != []
    for _ in range(2):
        assert place.stop(handle.where, grace_s=GRACE_S) == []
        wait_for(lambda: place.left() == [], 10, "all of it to be gone")
    assert place.observe(handle).alive is False


def test_what_the_lease_recorded_is_enough_to_stop_it(place: Place):
    handle = place.launch()
    place.wait_until_it_serves(handle)
    lease = place.leases.read(place.lease.name)
    assert lease is not None
    (item,) = lease.owned
    assert (item.kind, item.name, item.launcher) == ("worker", handle.name, handle.launcher)
    assert place.stop(item.where, grace_s=GRACE_S) == []
    wait_for(lambda: place.left() == [], 10, "all of it to be gone")


def test_a_worker_that_was_stopped_can_be_launched_anew(place: Place):
    first = place.launch()
    place.stop(first.where, grace_s=GRACE_S)
    again = place.launch()
    place.wait_until_it_serves(again)
    assert place.observe(again).alive is True
    assert place.observe(first).alive is False


def test_nothing_is_launched_under_a_lease_that_is_gone(place: Place, request: pytest.FixtureRequest):
    if isinstance(place.leases, LeaseStore):
        place.leases.remove(place.lease.name)
    else:
        cluster: Any = request.getfixturevalue("cluster")
        cluster.coordination.delete_namespaced_lease(place.lease.name, cluster.namespace)
    with pytest.raises(LeaseError):
        place.launch()
    assert place.left() == []
