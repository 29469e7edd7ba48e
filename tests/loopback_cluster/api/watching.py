"""Watches: a line per change until the time is up, the server stops, or the history is too short."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import aiohttp
from aiohttp import web

from tests.loopback_cluster.api.kinds import Kind
from tests.loopback_cluster.api.status import ApiFailure
from tests.loopback_cluster.api.store import Key, Object, Store

_BOOKMARK_S = 1.0
_USUAL_S = 300.0
Test = Callable[[Key, Object], bool]


class Watch:
    """One watch request.

    :param matches: which objects it is about.
    :param stopped: whether the server is going down.
    """

    def __init__(self, store: Store, kind: Kind, matches: Test, stopped: Callable[[], bool]) -> None:
        self._store = store
        self._kind = kind
        self._matches = matches
        self._stopped = stopped
        self._response = web.StreamResponse(headers={"Content-Type": "application/json"})

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer it to its end."""
        await self._response.prepare(request)
        query = request.query
        since = int(query.get("resourceVersion") or 0)
        if since == 0:
            since = self._store.version
            for key, found in sorted(self._store.objects.items()):
                if self._matches(key, found):
                    await self._tell("ADDED", found)
        sending = asyncio.ensure_future(self._send_changes(since))
        wanted = query.get("allowWatchBookmarks") in ("true", "True", "1")
        telling = asyncio.ensure_future(self._send_bookmarks()) if wanted else None
        try:
            await asyncio.wait_for(sending, float(query.get("timeoutSeconds") or _USUAL_S))
        except (asyncio.TimeoutError, ConnectionError, aiohttp.ClientError):
            pass
        except ApiFailure as failure:
            await self._tell("ERROR", failure.body)
        finally:
            if telling:
                telling.cancel()
        return self._response

    async def _send_changes(self, since: int) -> None:
        async for event, found in self._store.changes(since, self._matches, self._stopped):
            await self._tell(event, found)

    async def _send_bookmarks(self) -> None:
        while True:
            await asyncio.sleep(_BOOKMARK_S)
            meta = {"resourceVersion": str(self._store.version)}
            what = {"kind": self._kind.name, "apiVersion": self._kind.api_version, "metadata": meta}
            await self._tell("BOOKMARK", what)

    async def _tell(self, event: str, found: Object) -> None:
        await self._response.write(json.dumps({"type": event, "object": found}).encode() + b"\n")
