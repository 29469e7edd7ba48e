"""``/v1/batches``: OpenAI's four calls, on :class:`~airflow_arcadia.runtime.batch_jobs.BatchJobs`."""

from __future__ import annotations

from typing import Any

from airflow_arcadia.exceptions import BatchInputError
from airflow_arcadia.runtime.asgi import Receive, Scope, Send, read_json, refuse, respond
from airflow_arcadia.runtime.batch_jobs import BatchJobs

PREFIX = "/v1/batches"


def is_batch_path(path: str) -> bool:
    """Whether the path belongs to the Batch API."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


async def handle(jobs: BatchJobs, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request of the Batch API."""
    method, parts = scope["method"], scope["path"].removeprefix(PREFIX).strip("/").split("/")
    if parts == [""] and method == "POST":
        try:
            batch = jobs.create(await read_json(receive))
        except (BatchInputError, ValueError, TypeError) as error:
            await refuse(send, 400, str(error))
        else:
            await respond(send, 200, batch.to_openai())
    elif parts == [""] and method == "GET":
        data = [batch.to_openai() for batch in jobs.list()]
        await respond(send, 200, _page(data))
    elif (found := jobs.find(parts[0])) is None:
        await refuse(send, 404, f"There is no batch {parts[0]!r}.")
    elif len(parts) == 1 and method == "GET":
        await respond(send, 200, found.to_openai())
    elif parts[1:] == ["cancel"] and method == "POST":
        jobs.cancel(found)
        await respond(send, 200, found.to_openai())
    else:
        await refuse(send, 405, f"{method} is not allowed here.")


def _page(data: list[dict[str, Any]]) -> dict[str, Any]:
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": False}
