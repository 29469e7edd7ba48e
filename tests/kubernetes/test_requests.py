"""Requests to an API server that is away, busy, or has forgotten what it said before."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest

from airflow_arcadia.hooks.kubernetes import kubernetes_api
from airflow_arcadia.kubernetes.api import PATIENCE_S, KubernetesApi, Session
from airflow_arcadia.kubernetes.errors import KubernetesConflictError, KubernetesUnreachableError
from airflow_arcadia.kubernetes.kinds import CONFIG_MAP, LEASE
from tests.loopback_cluster.cluster import Cluster, Loopback

BODY = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "labels": {"of": "us"}}}


@pytest.fixture
def requests(cluster: Cluster) -> Callable[..., KubernetesApi]:
    """An API that is asked as patiently as one says."""

    def patient(patience_s: float = 20.0) -> KubernetesApi:
        return kubernetes_api(cluster.airflow_connection["extra"], cluster.namespace, patience_s)

    return patient


def away(loopback: Loopback, seconds: float) -> threading.Thread:
    """Take the API server away now, and bring it back after so long."""
    loopback.stop_api()
    coming = threading.Timer(seconds, loopback.start_api)
    coming.start()
    return coming


def test_patience_covers_a_minute():
    assert PATIENCE_S > 60.0


def test_an_api_server_that_comes_back_in_time_is_waited_for(requests: Any, loopback: Loopback):
    coming = away(loopback, 2.0)
    made = requests().run(lambda session: session.create(CONFIG_MAP, BODY))
    coming.join()
    assert made["metadata"]["uid"]


def test_one_that_does_not_is_named_and_says_nothing_about_what_is_there(requests: Any, loopback: Loopback):
    coming = away(loopback, 3.0)
    began = time.monotonic()
    with pytest.raises(KubernetesUnreachableError) as failed:
        requests(0.5).run(lambda session: session.get(LEASE, "l"))
    assert time.monotonic() - began < 2.5
    assert failed.value.retryable
    coming.join()
    assert requests().run(lambda session: session.get(LEASE, "l")) is None


@pytest.mark.parametrize("code", [429, 500, 503, 504])
def test_a_server_that_cannot_answer_just_now_is_asked_again(requests: Any, loopback: Loopback, code: int):
    loopback.fail(code, verb="create", resource="configmaps", times=2)
    made = requests().run(lambda session: session.create(CONFIG_MAP, BODY))
    assert made["metadata"]["name"] == "c"


def test_a_stale_write_is_refused_at_once(requests: Any, cluster: Cluster):
    async def twice(session: Session) -> None:
        first = await session.create(CONFIG_MAP, BODY)
        await session.patch(CONFIG_MAP, "c", {"data": {"a": "newer"}})
        await session.replace(CONFIG_MAP, {**first, "data": {"a": "stale"}})

    with pytest.raises(KubernetesConflictError):
        requests().run(twice)
    assert cluster.core.read_namespaced_config_map("c", cluster.namespace).data == {"a": "newer"}


@pytest.mark.parametrize("trouble", ["expired", "refused", "away"])
def test_a_watch_goes_on_after_whatever_ended_it(
    requests: Any, cluster: Cluster, loopback: Loopback, trouble: str
):
    """What was made, changed and deleted while nothing could be seen is seen afterwards."""

    def end_the_watch() -> None:
        if trouble == "away":
            loopback.stop_api()
        else:
            # The connection breaks, and the next watch is answered so.
            loopback.fail(410 if trouble == "expired" else 503, verb="watch", resource="configmaps")
            with loopback.api_away():
                pass

    async def follow(session: Session) -> list[Any]:
        seen: list[Any] = []
        await session.create(CONFIG_MAP, BODY)
        async with aclosing(session.changes(CONFIG_MAP, labels="of=us")) as changes:
            async for found in changes:
                seen.append(None if found is None else [(item.get("data") or {}).get("a") for item in found])
                if seen[-1] == [None]:
                    await asyncio.to_thread(end_the_watch)
                    if trouble == "away":
                        await asyncio.to_thread(loopback.start_api)
                    changing = {"data": {"a": "changed"}}
                    core = cluster.core
                    await asyncio.to_thread(
                        core.patch_namespaced_config_map, "c", cluster.namespace, changing
                    )
                elif seen[-1] == ["changed"]:
                    await session.delete(CONFIG_MAP, "c")
                elif seen[-1] == []:
                    return seen
        raise AssertionError("the watch ended")

    session_of = requests()
    seen = session_of.run(lambda session: asyncio.wait_for(follow(session), 30))
    told = [each for number, each in enumerate(seen) if each is not None and each != seen[number - 1]]
    assert told[-2:] == [["changed"], []]


def test_deleting_ends_that_object_alone_however_late_it_is(requests: Any, cluster: Cluster):
    async def late(session: Session) -> str:
        first = await session.create(CONFIG_MAP, BODY)
        await session.delete(CONFIG_MAP, "c", uid=first["metadata"]["uid"])
        await session.delete(CONFIG_MAP, "c", uid=first["metadata"]["uid"])
        second = await session.create(CONFIG_MAP, BODY)
        await session.delete(CONFIG_MAP, "c", uid=first["metadata"]["uid"])
        return str(second["metadata"]["uid"])

    second = requests().run(late)
    assert cluster.core.read_namespaced_config_map("c", cluster.namespace).metadata.uid == second
