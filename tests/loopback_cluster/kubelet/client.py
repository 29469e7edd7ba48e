"""What a kubelet or a controller of the loopback asks of the API: plain JSON over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

Object = dict[str, Any]
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
_AWAY_S = 0.2
_GONE = (404, 409)
_TERMINATING = "because it is being terminated"


class ApiClient:
    """Asks until it is answered: an API server that is away for a while is waited for."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10))

    async def close(self) -> None:
        """End its connections."""
        await self._session.close()

    async def ask(
        self, method: str, path: str, body: Object | None = None, patch: str = MERGE_PATCH
    ) -> Object | None:
        """The answer; None for 404, for 409, and for what is new in a namespace that is being deleted."""
        headers = {"Content-Type": patch if method == "PATCH" else "application/json"}
        data = None if body is None else json.dumps(body)
        while True:
            try:
                async with self._session.request(
                    method, f"{self._url}{path}", data=data, headers=headers
                ) as r:
                    if r.status in _GONE:
                        return None
                    if r.status >= 400:
                        failure = await r.text()
                        if r.status == 403 and _TERMINATING in failure:
                            return None
                        raise AssertionError(f"{method} {path}: {r.status} {failure}")
                    answer: Object = await r.json()
                    return answer
            except (aiohttp.ClientError, asyncio.TimeoutError):
                await asyncio.sleep(_AWAY_S)

    async def follow(self, path: str) -> AsyncIterator[tuple[str, Object]]:
        """List, then watch, for ever: ``("SYNC", list)`` after each list, then the events."""
        while True:
            listed = await self.ask("GET", path)
            assert listed is not None
            yield "SYNC", listed
            version = listed["metadata"]["resourceVersion"]
            joint = "&" if "?" in path else "?"
            url = f"{self._url}{path}{joint}watch=1&resourceVersion={version}&timeoutSeconds=300"
            try:
                async with self._session.get(
                    url, timeout=aiohttp.ClientTimeout(total=None), read_bufsize=4 << 20
                ) as response:
                    async for line in response.content:
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            break
                        yield event["type"], event["object"]
            except (aiohttp.ClientError, asyncio.TimeoutError):
                await asyncio.sleep(_AWAY_S)
