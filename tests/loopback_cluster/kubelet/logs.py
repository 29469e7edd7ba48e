"""``pods/log``: follow, tail, since, previous, timestamps."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Iterable
from typing import TYPE_CHECKING

from aiohttp import web

from tests.loopback_cluster.api.status import ApiFailure
from tests.loopback_cluster.kubelet.client import Object
from tests.loopback_cluster.kubelet.container import Container

if TYPE_CHECKING:
    from tests.loopback_cluster.kubelet.pod import PodWorker

_POLL_S = 0.05
_TRUE = ("true", "True", "1")  # the Python client capitalises


async def serve(request: web.Request, pod: Object, worker: PodWorker | None) -> web.StreamResponse:
    """Answer one request for a log."""
    query = request.query
    container = _container(pod, worker, query.get("container"))
    if query.get("previous") in _TRUE:
        path = container.previous_log
        if not path.exists():
            said = f'previous terminated container "{container.name}" in pod "{pod["metadata"]["name"]}"'
            raise ApiFailure(400, "BadRequest", f"{said} not found")
    else:
        path = container.log if container.log.exists() else container.previous_log
        if not path.exists():
            why = container.state.get("waiting", {}).get("reason", "ContainerCreating")
            said = (
                f'container "{container.name}" in pod "{pod["metadata"]["name"]}" is waiting to start: {why}'
            )
            raise ApiFailure(400, "BadRequest", said)
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    since = _since(query.get("sinceSeconds"), query.get("sinceTime"))
    stamped, following = query.get("timestamps") in _TRUE, query.get("follow") in _TRUE
    with path.open(encoding="utf-8") as file:
        lines = [line for line in file.readlines() if line >= since]
        if tail := query.get("tailLines"):
            lines = lines[-int(tail) :] if int(tail) else []
        while True:
            text = "".join(_shown(lines, stamped=stamped))
            if text:
                try:
                    await response.write(text.encode())
                except ConnectionResetError:  # whoever followed is gone
                    return response
            ended = container.exit_code is not None or path != container.log
            if not following or (ended and not lines):
                return response
            await asyncio.sleep(_POLL_S)
            lines = file.readlines()


def _shown(lines: Iterable[str], *, stamped: bool) -> Iterable[str]:
    return lines if stamped else (line.partition(" ")[2] for line in lines)


def _container(pod: Object, worker: PodWorker | None, name: str | None) -> Container:
    whose = pod["metadata"]["name"]
    everyone = [c["name"] for c in [*pod["spec"]["containers"], *(pod["spec"].get("initContainers") or ())]]
    mains = [c["name"] for c in pod["spec"]["containers"]]
    if name is None and len(mains) > 1:
        said = f"a container name must be specified for pod {whose}, choose one of: [{' '.join(mains)}]"
        raise ApiFailure(400, "BadRequest", said)
    if name is not None and name not in everyone:
        raise ApiFailure(400, "BadRequest", f"container {name} is not valid for pod {whose}")
    found = worker.container(name or mains[0]) if worker else None
    if found is None:
        said = f"pod {whose} does not have a host assigned"
        raise ApiFailure(400, "BadRequest", said)
    return found


def _since(seconds: str | None, moment: str | None) -> str:
    """The first stamp that is shown, as lines begin with it."""
    utc = datetime.timezone.utc
    if seconds:
        start = datetime.datetime.now(utc) - datetime.timedelta(seconds=int(seconds))
    elif moment:
        start = datetime.datetime.fromisoformat(moment.replace("Z", "+00:00")).astimezone(utc)
        start = start.replace(
            microsecond=0
        )  # the kubelet keeps whole seconds: lines of that second come again
    else:
        return ""
    return start.strftime("%Y-%m-%dT%H:%M:%S.%f")
