"""``/v1/arcadia/bundle``: many rows in one request, see :mod:`airflow_arcadia.batch.transport.bundles`."""

from __future__ import annotations

import asyncio

from airflow_arcadia.batch.transport.bundles import MAX_ROWS, PATH, count_rows, pack_answer, unpack
from airflow_arcadia.batch.transport.http_client import Response
from airflow_arcadia.runtime.asgi import Receive, Scope, Send, disconnected, read_body, refuse, respond
from airflow_arcadia.runtime.endpoint_caller import EndpointCaller

_HEADERS = ((b"content-type", b"text/plain; charset=utf-8"),)


async def handle(caller: EndpointCaller, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request."""
    if scope["method"] == "GET":
        await respond(send, 200, {"path": PATH})
        return
    if scope["method"] != "POST":
        await refuse(send, 405, f"{scope['method']} is not allowed here.")
        return
    data = await read_body(receive)
    if count_rows(data) > MAX_ROWS:
        await refuse(send, 413, f"The bundle has more than {MAX_ROWS} rows.")
        return
    try:
        rows = unpack(data)
    except ValueError as error:
        await refuse(send, 400, str(error))
        return
    bundle = _Bundle(caller)
    tasks = [asyncio.create_task(bundle.wait_for_leave(receive))]
    try:
        await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        for row in enumerate(rows):
            tasks.append(asyncio.create_task(bundle.answer(*row)))
            # One in each turn of the event loop: the engine is at work on the first ones while the others
            # are still read.
            await asyncio.sleep(0)
        await bundle.send_all(len(rows), send)
    finally:
        for task in tasks:
            task.cancel()


class _Bundle:
    """The rows of one request: lines collect while the ones before them are sent."""

    def __init__(self, caller: EndpointCaller) -> None:
        self._caller = caller
        self._lines: list[bytes] = []
        self._more = asyncio.Event()
        self._left = False

    async def answer(self, number: int, row: tuple[str, bytes]) -> None:
        try:
            answer = await self._caller.answer(*row)
        except Exception as error:  # noqa: BLE001 - one row's failure is not the others'
            answer = Response(500, repr(error).encode(), None)
        self._lines.append(pack_answer(number, answer))
        self._more.set()

    async def wait_for_leave(self, receive: Receive) -> None:
        await disconnected(receive)
        self._left = True
        self._more.set()

    async def send_all(self, count: int, send: Send) -> None:
        """Send lines until there is one for each row, or nobody to read them."""
        while count:
            await self._more.wait()
            if self._left:
                return
            self._more.clear()
            lines, self._lines = self._lines, []
            count -= len(lines)
            await send({"type": "http.response.body", "body": b"".join(lines), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
