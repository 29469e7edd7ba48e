"""The worker's own lines in ``/metrics``, after vLLM's; ``docs/reference/metrics.md`` explains them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_arcadia.batch import Progress
from airflow_arcadia.exceptions import UnreadableLeaseError
from airflow_arcadia.lease_store import read_lease_file
from airflow_arcadia.runtime.asgi import Send
from airflow_arcadia.runtime.asgi_client import AsgiClient
from airflow_arcadia.worker import PlacedWorker, WorkerStatus

METRICS_PATH = "/metrics"
_TEXT = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
_STATES = (WorkerStatus.STARTING, WorkerStatus.READY, WorkerStatus.HUNG, WorkerStatus.DRAINING)


@dataclass
class BatchCounters:
    """What the batches that the worker runs have done since its server started.

    :param last_row_at: when one of them last got further, or began, seconds since the epoch; None before the
        first one.
    """

    ok: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    last_row_at: float | None = None

    def note(self, before: Mapping[str, Any] | None, progress: Progress, now: float) -> None:
        """Add what one batch did.

        :param before: its progress before; None for its first one, where an earlier attempt ended.
        """
        if before is None or progress.done > before["done"] or self.last_row_at is None:
            self.last_row_at = now
        if before is None:
            return
        # A damaged segment's rows are answered again: they are counted again, never taken back.
        for name in ("ok", "failed", "prompt_tokens", "completion_tokens"):
            more = getattr(progress, name) - before.get(name, 0)
            setattr(self, name, getattr(self, name) + max(0, more))


@dataclass
class WorkerMetrics:
    """The worker's state, for one answer.

    :param running: number of its batches that run now.
    :param ready_seconds: from the server's start until the model generated first; None before that.
    :param lease_expires_at: seconds since the epoch; None for a worker that sees no lease.
    :param cause: what stands in the way of its being ready, if anything does.
    """

    status: WorkerStatus
    cause: str = ""
    name: str = ""
    model: str = ""
    num_gpus: int = 0
    running: int = 0
    ready_seconds: float | None = None
    lease_expires_at: float | None = None
    batches: BatchCounters = field(default_factory=BatchCounters)

    @classmethod
    def of(cls, spec: PlacedWorker, status: WorkerStatus, cause: str, **more: Any) -> WorkerMetrics:
        """Of that worker."""
        return cls(status, cause, spec.name, spec.served_model_name, spec.num_gpus, **more)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        counters = self.batches
        families = [
            _family("arcadia_worker_info", "gauge", "The worker's name and the model it serves, always 1.",
                    [({"worker": self.name, "model": self.model}, 1)]),
            _family("arcadia_worker_status", "gauge", "Whether the worker is in this state.",
                    [({"status": state.value}, int(state is self.status)) for state in _STATES]),
            _family("arcadia_worker_problem", "gauge", "What stands in the way of the worker's being ready.",
                    [({"cause": self.cause}, 1)] if self.cause else []),
            _family("arcadia_worker_gpus", "gauge", "GPUs that the worker holds.", [({}, self.num_gpus)]),
            _family("arcadia_worker_ready_seconds", "gauge",
                    "Seconds from the server's start until the model generated first.",
                    _one(self.ready_seconds)),
            _family("arcadia_lease_expires_timestamp_seconds", "gauge",
                    "When the worker's lease lapses unless it is renewed.", _one(self.lease_expires_at)),
            _family("arcadia_batches_running", "gauge", "Batches that the worker runs itself now.",
                    [({}, self.running)]),
            _family("arcadia_batch_rows_total", "counter", "Rows of such batches that are done.",
                    [({"outcome": "ok"}, counters.ok), ({"outcome": "failed"}, counters.failed)]),
            _family("arcadia_batch_tokens_total", "counter",
                    "Tokens of such batches, as the engine counted them.",
                    [({"kind": "prompt"}, counters.prompt_tokens),
                     ({"kind": "completion"}, counters.completion_tokens)]),
            _family("arcadia_batch_last_row_timestamp_seconds", "gauge",
                    "When such a batch last got further, or began.", _one(counters.last_row_at)),
        ]  # fmt: skip
        return "".join(f"{line}\n" for family in families for line in family).encode()


async def add_metrics(client: AsgiClient, send: Send, metrics: WorkerMetrics) -> None:
    """Answer ``/metrics`` with what the server says and the worker's own state."""
    inner = await client.call("GET", METRICS_PATH)
    body = (inner.body if inner.status == 200 else b"") + metrics.text()
    await send({"type": "http.response.start", "status": 200, "headers": [_TEXT]})
    await send({"type": "http.response.body", "body": body})


def lease_expires_at(path: str | os.PathLike[str] | None) -> float | None:
    """When the lease in that file lapses; None where there is none or it cannot be read."""
    if path is None:
        return None
    try:
        lease = read_lease_file(Path(path))
    except (OSError, UnreadableLeaseError):
        return None
    return lease.expires_at if lease is not None else None


Sample = tuple[Mapping[str, str], float]


def _family(name: str, kind: str, meaning: str, samples: Iterable[Sample]) -> list[str]:
    lines = [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
    return lines + [f"{name}{_labels(labels)} {value}" for labels, value in samples]


def _labels(labels: Mapping[str, str]) -> str:
    escaped = {
        key: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        for key, value in labels.items()
    }
    return "{" + ",".join(f'{key}="{value}"' for key, value in escaped.items()) + "}" if escaped else ""


def _one(value: float | None) -> list[Sample]:
    return [] if value is None else [({}, value)]
