"""The batch engine: answer a file of rows with OpenAI-compatible servers. Knows nothing of Airflow.

One pass over the input validates it and records where each row starts (:mod:`prepare`, :mod:`input`). Rows
then go, many at a time, straight to the endpoints (:mod:`runner`, :mod:`sender`, :mod:`transport`), come back
as lines of the output and are committed in segments, which are merged in input order at the end
(:mod:`output`).
"""

from airflow_arcadia.batch.prepare import check_input, finished_summary
from airflow_arcadia.batch.progress import Phase, Progress
from airflow_arcadia.batch.runner import run_batch, run_batch_async
from airflow_arcadia.batch.spec import BatchSpec, BatchSummary, Endpoint

__all__ = [
    "BatchSpec",
    "BatchSummary",
    "Endpoint",
    "Phase",
    "Progress",
    "check_input",
    "finished_summary",
    "run_batch",
    "run_batch_async",
]
