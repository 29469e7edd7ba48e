"""What becomes of a task whose batch is finished and has failed rows. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from airflow_arcadia.batch import BatchSummary
from airflow_arcadia.validation import Index


@dataclass(frozen=True)
class FailedRowsPolicy:
    """Parameters of ``ArcadiaBatchInferenceOperator`` of the same names."""

    on_failed_rows: Literal["warn", "fail", "skip"] = "warn"
    failed_rows_accepted: Index = 0

    def ends_task(self, summary: BatchSummary) -> AirflowException | None:
        """The exception that the task ends with; None for a success."""
        if self.on_failed_rows == "warn" or summary.failed <= self.failed_rows_accepted:
            return None
        said = (
            f"{summary.failed} of {summary.rows} rows failed, and {self.failed_rows_accepted} are accepted. "
            f"All other answers are in {summary.output}, the failed rows alone in {summary.errors}. Correct "
            "the cause and retry the failed rows, or raise failed_rows_accepted."
        )
        return AirflowSkipException(said) if self.on_failed_rows == "skip" else AirflowFailException(said)
