"""Runs after every batch of ``arcadia_batch_inference``, by the asset that the batch updates.

The event of the asset says what was written: rows, failed rows, tokens, GPU-seconds, and whether answers are
missing. Replace the report by what is to be done with the answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pendulum
from airflow.sdk import DAG, Asset, task

ANSWERS = Asset("arcadia_answers")

with DAG(
    "arcadia_answers_report",
    description="Report what each batch has answered.",
    schedule=[ANSWERS],
    start_date=pendulum.datetime(2026, 1, 1),
    catchup=False,
    doc_md=__doc__,
    tags=["arcadia"],
):

    @task
    def report(triggering_asset_events: Mapping[Asset, Sequence[Any]]) -> list[dict[str, Any]]:
        """Say what each batch since the last run has answered; returns what the events told."""
        batches = [dict(event.extra) for events in triggering_asset_events.values() for event in events]
        for batch in batches:
            missing = ", answers are missing" if batch["partial"] else ""
            print(f"{batch['output']}: {batch['ok']} of {batch['rows']} rows{missing}")
        return batches

    report()  # type: ignore[call-arg]  # Airflow passes what the context has by the parameter's name
