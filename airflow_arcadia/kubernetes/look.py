"""Look at a pod: with its events while it does not run, and with the log that says why it failed."""

from __future__ import annotations

from collections.abc import AsyncIterator

from airflow_arcadia.kubernetes.api import Session
from airflow_arcadia.kubernetes.kinds import EVENT, Object
from airflow_arcadia.kubernetes.pods import PodSeen, failed_container

LOG_LINES = 40  # a traceback of vLLM's with the lines before it


async def look(session: Session, name: str, container: str, pod: Object | None) -> PodSeen:
    """The pod with what explains it.

    :param container: whose log matters while none has failed.
    :param pod: as the API server has it; None when it says that there is none.
    """
    if pod is None:
        return PodSeen(name, None)
    status = pod.get("status") or {}
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ())
    events = [] if ready else await session.find(EVENT, fields=f"involvedObject.uid={pod['metadata']['uid']}")
    events.sort(key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))
    failed = failed_container(pod)
    container, previous = failed or (container, False)
    lines: list[str] = []
    if failed or status.get("phase") == "Running":
        lines = await session.logs(name, container, LOG_LINES, previous=previous)
    return PodSeen(name, pod, events, lines)


async def lines_since(
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
