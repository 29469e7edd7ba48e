"""Read a pod: with its events while it is not ready, and with the log that says why it failed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from airflow_arcadia.kubernetes.api import Session
from airflow_arcadia.kubernetes.errors import KubernetesUnreachableError
from airflow_arcadia.kubernetes.kinds import EVENT, Object
from airflow_arcadia.kubernetes.pod_status import PodSeen, failed_container, is_ready

LOG_LINES = 40  # a traceback of vLLM's with the lines before it
_LOG_PAUSE_S = 1.0


T = TypeVar("T")


async def unless_unreachable(work: Awaitable[T]) -> T | None:
    """The result; None while the API server cannot be reached, where nothing is known."""
    try:
        return await work
    except KubernetesUnreachableError:
        return None


async def look(session: Session, name: str, container: str | None, pod: Object | None) -> PodSeen:
    """Read what explains the state of a pod: its events while it is not ready, and a log.

    :param container: whose log to read while it runs and none has failed; None reads only a failed one's.
    :param pod: as the API server has it; None when it says that there is none.
    """
    if pod is None:
        return PodSeen(name, None)
    of_it = f"involvedObject.uid={pod['metadata']['uid']}"
    status = pod.get("status") or {}
    events = [] if is_ready(pod) else await session.find(EVENT, fields=of_it)
    events.sort(key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))
    failed = failed_container(pod)
    if failed is None and container is not None and status.get("phase") == "Running":
        failed = container, False
    lines: list[str] = []
    if failed is not None:
        container, previous = failed
        lines = await session.logs(name, container, LOG_LINES, previous=previous)
    return PodSeen(name, pod, events, lines)


async def follow(
    session: Session, container: str, pod_now: Callable[[], Awaitable[str | None]]
) -> AsyncGenerator[str, None]:
    """A container's log as it grows, from its beginning, however often the connection breaks. Never ends.

    :param pod_now: name of the pod, asked before every connection; another one's log is told from its own
        beginning. None while there is none.
    """
    pod, since = None, None
    while True:
        try:
            found = await pod_now()
            if found is not None and found != pod:
                pod, since = found, None
            if pod is not None:
                async for stamp, text in _lines_since(session, pod, container, since):
                    since = stamp
                    yield text
        except Exception:  # noqa: BLE001, S110 - no log is no reason to end a wait; the watch decides
            pass
        await asyncio.sleep(_LOG_PAUSE_S)


async def _lines_since(
    session: Session, pod: str, container: str, since: str | None
) -> AsyncIterator[tuple[str, str]]:
    """New log lines with their time stamps as they come, until the container or the connection ends.

    :param since: stamp of the last line that is known.
    """
    async for line in session.follow_log(pod, container, since):
        stamp, _, text = line.partition(" ")
        if since is None or stamp > since:
            since = stamp
            yield stamp, text
