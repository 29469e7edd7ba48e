"""Services: what connects to a Service's address and port reaches a ready pod that it selects."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from tests.loopback_cluster.kubelet.client import ApiClient, Object

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class ServiceProxy:
    """Listens on the addresses of Services (127.x.y.z, so on this machine alone) and passes bytes on."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self._pods: dict[str, Object] = {}
        self._services: dict[str, Object] = {}
        self._listening: dict[str, list[asyncio.Server]] = {}

    async def run(self) -> None:
        """Until cancelled."""
        try:
            await asyncio.gather(
                self._follow("/api/v1/pods", self._pods), self._follow("/api/v1/services", self._services)
            )
        finally:
            for uid in list(self._listening):
                self._close(uid)

    async def _follow(self, path: str, known: dict[str, Object]) -> None:
        async for event, found in self._api.follow(path):
            if event == "SYNC":
                known.clear()
                known |= {item["metadata"]["uid"]: item for item in found["items"]}
            elif event == "DELETED":
                known.pop(found["metadata"]["uid"], None)
            else:
                known[found["metadata"]["uid"]] = found
            await self._listen()

    async def _listen(self) -> None:
        servers: list[asyncio.Server]
        for uid in set(self._listening) - set(self._services):
            self._close(uid)
        for uid, service in list(self._services.items()):
            address = service["spec"].get("clusterIP", "None")
            if uid in self._listening or address == "None":
                continue
            servers = self._listening[uid] = []
            for port in service["spec"].get("ports") or ():
                servers.append(await asyncio.start_server(self._serving(uid, port), address, port["port"]))

    def _close(self, uid: str) -> None:
        for server in self._listening.pop(uid):
            server.close()

    def _serving(self, uid: str, port: Object) -> Serve:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            target = self._endpoint(self._services.get(uid), port["targetPort"])
            try:
                assert target is not None, "no ready pod"
                near, far = await asyncio.open_connection("127.0.0.1", target)
            except (OSError, AssertionError):
                writer.transport.abort()  # connection reset, as from an empty Service
                return
            await asyncio.gather(_pass(reader, far), _pass(near, writer))

        return serve

    def _endpoint(self, service: Object | None, target: int | str) -> int | None:
        """The port of a ready pod that the Service selects."""
        selector = (service or {"spec": {}})["spec"].get("selector") or {}
        for pod in self._pods.values():
            labels = pod["metadata"].get("labels") or {}
            conditions = (pod.get("status") or {}).get("conditions") or ()
            ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
            here = service is not None and pod["metadata"]["namespace"] == service["metadata"]["namespace"]
            if not (selector and here and ready and selector.items() <= labels.items()):
                continue
            if isinstance(target, int):
                return target
            for container in pod["spec"]["containers"]:
                for port in container.get("ports") or ():
                    if port.get("name") == target:
                        return int(port["containerPort"])
        return None


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        writer.write_eof() if writer.can_write_eof() else writer.close()
