"""The batch engine: answer a file of rows with OpenAI-compatible servers. Knows nothing of Airflow.

One pass over the input proves it readable and notes where each row starts (:mod:`row_index`, :mod:`prepare`). Rows
then go, many at a time, straight to the endpoints (:mod:`runner`, :mod:`http_client`), come back as lines of the
output and are committed in segments (:mod:`segments`, :mod:`job`), which are merged in input order at the end
(:mod:`merge`).
"""

from airflow_arcadia.batch.prepare import check_input
from airflow_arcadia.batch.runner import run_batch, run_batch_async
from airflow_arcadia.batch.spec import BatchSpec, BatchSummary, Endpoint, Progress

__all__ = [
    "BatchSpec",
    "BatchSummary",
    "Endpoint",
    "Progress",
    "check_input",
    "run_batch",
    "run_batch_async",
]
