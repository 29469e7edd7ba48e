"""The worker's own lines in ``/metrics``, after vLLM's."""

from __future__ import annotations

from airflow_arcadia.runtime.asgi import Send
from airflow_arcadia.runtime.asgi_client import AsgiClient
from airflow_arcadia.worker import WorkerStatus

METRICS_PATH = "/metrics"
_TEXT = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")


async def add_metrics(client: AsgiClient, send: Send, status: WorkerStatus, cause: str) -> None:
    """Answer ``/metrics`` with what the server says and the worker's own state.

    :param cause: what stands in the way of its being ready, if anything does.
    """
    inner = await client.call("GET", METRICS_PATH)
    body = (inner.body if inner.status == 200 else b"") + worker_lines(status, cause)
    await send({"type": "http.response.start", "status": 200, "headers": [_TEXT]})
    await send({"type": "http.response.body", "body": body})


def worker_lines(status: WorkerStatus, cause: str) -> bytes:
    """The worker's state in Prometheus' text format."""
    lines = [
        "# HELP arcadia_worker_status Whether the worker is in this state.",
        "# TYPE arcadia_worker_status gauge",
    ]
    states = (WorkerStatus.STARTING, WorkerStatus.READY, WorkerStatus.HUNG, WorkerStatus.DRAINING)
    lines += [f'arcadia_worker_status{{status="{state.value}"}} {int(state is status)}' for state in states]
    lines += [
        "# HELP arcadia_worker_problem What stands in the way of the worker's being ready.",
        "# TYPE arcadia_worker_problem gauge",
    ]
    if cause:
        text = cause.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        lines.append(f'arcadia_worker_problem{{cause="{text}"}} 1')
    return "".join(f"{line}\n" for line in lines).encode()
