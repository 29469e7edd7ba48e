"""What a batch tells OpenLineage, where Airflow's OpenLineage provider is installed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_arcadia.batch import BatchSummary
from airflow_arcadia.batch.storage.base import shown

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

FACET = "arcadia_batch"
"""Key of the run facet with the model and the tokens."""
_SCHEMAS = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfs": "abfss"}
"""Protocol → what OpenLineage calls the same store."""


def batch_lineage(input_uri: str, output_uri: str, summary: BatchSummary | None) -> OperatorLineage[Any, Any]:
    """Input, output and, once the batch is done, rows, model and tokens.

    :param summary: of a finished batch; None before its end.

    Needs ``apache-airflow-providers-openlineage``, which calls it.
    """
    from airflow.providers.common.compat.openlineage.facet import (  # noqa: PLC0415 - an optional dependency
        InputDataset,
        OutputDataset,
        OutputStatisticsOutputDatasetFacet,
    )
    from airflow.providers.openlineage.extractors import OperatorLineage  # noqa: PLC0415

    (from_store, rows), (to_store, answers) = dataset_name(input_uri), dataset_name(output_uri)
    if summary is None:
        return OperatorLineage(
            inputs=[InputDataset(from_store, rows)], outputs=[OutputDataset(to_store, answers)]
        )
    written = OutputDataset(
        to_store,
        answers,
        outputFacets={"outputStatistics": OutputStatisticsOutputDatasetFacet(rowCount=summary.rows)},
    )
    return OperatorLineage(
        inputs=[InputDataset(from_store, rows)], outputs=[written], run_facets={FACET: _facet(summary)}
    )


def dataset_name(uri: str) -> tuple[str, str]:
    """Namespace and name by OpenLineage's rules: ``s3://bucket`` and the key, ``file`` and the path."""
    if "://" not in uri:
        return "file", str(Path(uri).absolute())
    parts = urlsplit(shown(uri))
    if parts.scheme in {"file", "local"}:
        return "file", parts.path
    scheme = _SCHEMAS.get(parts.scheme, parts.scheme)
    return f"{scheme}://{parts.netloc}", parts.path.lstrip("/")


def _facet(summary: BatchSummary) -> object:
    import attrs  # noqa: PLC0415 - OpenLineage's own dependency
    from airflow.providers.common.compat.openlineage.facet import RunFacet  # noqa: PLC0415

    fields = {
        "model": (str, summary.model),
        "ok": (int, summary.ok),
        "failed": (int, summary.failed),
        "promptTokens": (int, summary.prompt_tokens),
        "completionTokens": (int, summary.completion_tokens),
        "gpuSeconds": (float, summary.gpu_seconds),
    }
    kind = attrs.make_class(
        "ArcadiaBatchRunFacet",
        {name: attrs.field(type=kind, kw_only=True) for name, (kind, _) in fields.items()},
        bases=(RunFacet,),
    )
    return kind(**{name: value for name, (_, value) in fields.items()})
