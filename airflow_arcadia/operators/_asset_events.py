"""Say in the events of a batch's assets what was written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, AssetAlias

from airflow_arcadia.batch import BatchSummary
from airflow_arcadia.batch.storage.base import shown

if TYPE_CHECKING:
    from airflow.sdk import Context


def describe_answers(summary: BatchSummary, limit: int | None = None) -> dict[str, Any]:
    """The ``extra`` of an asset event, JSON-safe: where the answers are, how many, and what they cost.

    :param limit: most rows the batch was to answer; None: all of its input.
    """
    return {
        "output": shown(summary.output),
        "errors": shown(summary.errors) if summary.errors else None,
        "model": summary.model,
        "rows": summary.rows,
        "ok": summary.ok,
        "failed": summary.failed,
        "prompt_tokens": summary.prompt_tokens,
        "completion_tokens": summary.completion_tokens,
        "gpu_seconds": summary.gpu_seconds,
        # Rows beyond the limit are not read, so whether there are any is not known.
        "partial": summary.failed > 0 or (limit is not None and summary.rows >= limit),
    }


def record_answers(
    context: Context, outlets: Sequence[Any], summary: BatchSummary, limit: int | None = None
) -> None:
    """Put the description into the event of each asset among a task's outlets.

    An alias gets the output itself as its asset: its URI may be another one in each run.
    """
    events = context.get("outlet_events")
    if events is None:
        return
    extra = describe_answers(summary, limit)
    for outlet in outlets:
        if isinstance(outlet, Asset):
            events[outlet].extra = dict(extra)
        elif isinstance(outlet, AssetAlias):
            events[outlet].add(Asset(asset_uri(summary.output)), extra=dict(extra))


def asset_uri(output: str) -> str:
    """URI of an asset for a path or a URI, without its password."""
    return shown(output) if "://" in output else Path(output).absolute().as_uri()
