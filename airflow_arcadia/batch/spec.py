"""What a batch is asked to do, and what it tells: plain data, safe to go through JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypedDict

import orjson
from pydantic import Field

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.validation import Count, Fraction, Index, Seconds, check_fields, check_literals, parse

MAX_ROWS = 2**31 - 1
"""Rows one batch can have: a segment marks error rows in the upper bit of a 32-bit row number."""
NO_ROW_SENT = "No row was sent."
"""``still_running`` of what is checked before the first row is sent."""


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server that answers rows.

    :param url: base URL without ``/v1``, e.g. ``http://127.0.0.1:21002``.
    :param api_key: sent as ``Authorization: Bearer``; None sends no key.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class BatchSpec:
    """One batch: which rows, answered by which model, written where.

    :param input: URI or path of the rows, anything fsspec opens.
    :param output: URI or path of the answers, one line per row of the input, in its order. Beside it
        appear ``<output>.errors.jsonl`` and ``<output>.summary.json``, and while the batch runs the hidden
        folder ``.<name of output>.parts``.
    :param model: name the rows are sent to unless they name one; empty takes the only one served.
    :param parameters: request fields for rows that do not set their own, e.g. ``max_tokens``.
    :param limit: answer only the first so many rows; None answers all.
    :param max_in_flight: rows sent and not yet answered, per endpoint; twice the engine's
        ``max_num_seqs`` or more keeps it busy.
    :param max_in_flight_bytes: bytes of rows sent and not yet answered, over all endpoints; None bounds them
        by the memory that is available.
    :param max_attempts: how often a row may fail by itself before it becomes an error row; what its endpoint
        fails at does not count.
    :param retry_base_s: seconds before the first repetition of a row; doubles each time.
    :param retry_cap_s: most seconds between two repetitions of a row.
    :param request_timeout_s: seconds one answer may take.
    :param hang_timeout_s: seconds without a generated token, while rows are in flight, after which an engine
        counts as hung, as its ``/metrics`` tells; 0 switches the check off.
    :param endpoint_timeout_s: seconds without an answer of any endpoint after which the batch ends.
    :param max_failed_rows: stop when more rows than this have failed.
    :param max_failed_fraction: the same as a share of all rows, 0 to 1. With neither, the batch stops when
        the first 100 rows, or all of a shorter one, have failed; 1 never stops.
    :param overwrite: replace an existing output, whether or not a batch wrote it, and restart an unfinished
        batch that had another input, model or parameters. An unfinished batch that had the same is resumed.
    :param on_change: what to do when an earlier attempt on this output had another input, model or
        parameters: ``"fail"``, or ``"restart"`` from nothing.
    :param retry_failed_only: send the rows that failed before once more, and keep all other answers.
    :param keep_segments: leave the folder of committed segments when done.
    :param segment_rows: most rows in one segment.
    :param segment_seconds: seconds after which answered rows are committed at the latest.
    :param num_gpus: GPUs of all workers together, for the cost line of the summary.
    :param prompt_column: column (or key) that holds the prompt, ``prompt`` unless a table says otherwise.
    :param prompt_template: Jinja template of the prompt over the row's columns (or keys).
    :param prompt_as: ``"completion"`` sends a prompt as it is, ``"chat"`` as a user's message.
    :param columns_as_parameters: columns of a table that are request fields of their row, e.g.
        ``["max_tokens", "seed"]``; all others are for the prompt alone. Rows of JSON Lines are requests
        already: every field that the template does not read is sent.
    :param input_format: ``"jsonl"``, ``"csv"`` or ``"parquet"``; by default as the input's name ends.
    :param response_schema: JSON schema of the answers: it is sent as ``response_format`` with each chat and
        completion that has none of its own, and an answer that does not fit what its row asked for becomes an
        error row ``invalid_output``.
    :param ordering: ``"prefix"`` sends rows that begin alike one after the other, so that the engine's
        prefix cache serves them, and rows with a high ``max_tokens`` first; ``"input"`` keeps the input's
        order. The output is in input order with both.
    :param model_identity: what tells the model from another in place of ``model``, where that is a name of
        the worker's own, as Arcadia's are: a batch goes on with a worker of another name then.
    :param storage: options of fsspec's file systems by protocol, credentials among them, e.g.
        ``{"s3": {"key": …, "secret": …}}``. They are in no record, message or result.
    """

    input: str
    output: str
    model: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    limit: Count | None = None
    max_in_flight: Count = 512
    max_in_flight_bytes: Count | None = None
    max_attempts: Count = 5
    retry_base_s: Seconds = 0.5
    retry_cap_s: Seconds = 30.0
    request_timeout_s: Seconds = 3600.0
    hang_timeout_s: Seconds = 300.0
    endpoint_timeout_s: Seconds = 600.0
    max_failed_rows: Index | None = None
    max_failed_fraction: Fraction | None = None
    overwrite: bool = False
    on_change: Literal["fail", "restart"] = "fail"
    retry_failed_only: bool = False
    keep_segments: bool = False
    segment_rows: Count = 4096
    segment_seconds: Seconds = 10.0
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    prompt_column: str | None = None
    prompt_template: str | None = None
    prompt_as: Literal["completion", "chat"] = "completion"
    columns_as_parameters: tuple[str, ...] = ()
    input_format: Literal["jsonl", "csv", "parquet"] | None = None
    response_schema: Mapping[str, Any] | None = None
    ordering: Literal["prefix", "input"] = "prefix"
    model_identity: str = ""
    storage: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            if not getattr(self, name):
                raise ArcadiaConfigError(
                    f"The batch's {name} is empty.", what_to_do=f"Set {name} to a path or URI."
                )
        check_fields(self, "batch")
        try:
            orjson.dumps(dict(self.parameters))
            orjson.dumps(dict(self.response_schema or {}))
        except TypeError as error:
            raise ArcadiaConfigError(
                f"The batch's parameters cannot be sent as JSON: {error}.",
                what_to_do="Use texts, numbers of at most 64 bits, lists, and mappings with texts as keys.",
            ) from error

    @classmethod
    def parse(cls, options: object, *, input: str, output: str, **fields: Any) -> BatchSpec:
        """The batch with ``options``, a mapping with keys of :class:`BatchOptions`.

        :param fields: further fields; ``options`` wins.

        Raises :class:`ArcadiaConfigError` naming the option at fault.
        """
        return parse(cls, options, "options", names=OPTIONS, input=input, output=output, **fields)

    @classmethod
    def check_literals(cls, options: object) -> None:
        """Check what is known when a DAG is parsed. Raises as :meth:`parse`."""
        check_literals(cls, options, "options", names=OPTIONS)

    def failed_rows_allowed(self, rows: int) -> int | None:
        """How many of so many rows may fail; None: all."""
        if self.max_failed_fraction is None:
            return self.max_failed_rows
        # 0.29 * 100 is 28.999… in binary floating point, and was meant as 29.
        share = math.floor(self.max_failed_fraction * rows + 1e-6)
        return share if self.max_failed_rows is None else min(share, self.max_failed_rows)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form without ``storage``; ``BatchSpec(**raw)`` is its inverse."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "storage"}
        return {
            **fields,
            "parameters": dict(self.parameters),
            "response_schema": dict(self.response_schema) if self.response_schema is not None else None,
            "columns_as_parameters": list(self.columns_as_parameters),
        }


class BatchOptions(TypedDict, total=False):
    """Keys of the parameter ``options``, with the meaning of :class:`BatchSpec`'s fields.

    Every value may be a template; text becomes the declared type.
    """

    limit: int | str | None
    max_in_flight: int | str
    max_in_flight_bytes: int | str | None
    max_attempts: int | str
    retry_base_s: float | str
    retry_cap_s: float | str
    request_timeout_s: float | str
    hang_timeout_s: float | str
    endpoint_timeout_s: float | str
    max_failed_rows: int | str | None
    max_failed_fraction: float | str | None
    overwrite: bool | str
    on_change: str
    retry_failed_only: bool | str
    keep_segments: bool | str
    segment_rows: int | str
    segment_seconds: float | str
    num_gpus: float | str
    prompt_column: str | None
    prompt_template: str | None
    prompt_as: str
    columns_as_parameters: Sequence[str] | str
    input_format: str | None
    response_schema: Mapping[str, Any] | str | None
    ordering: str
    model_identity: str


OPTIONS = {name: name for name in BatchOptions.__annotations__}
"""Keys of ``options`` → fields of :class:`BatchSpec`."""


@dataclass(frozen=True)
class BatchSummary:
    """What a finished batch did.

    :param rows: rows of the input.
    :param ok: rows that were answered.
    :param failed: error rows.
    :param seconds: time spent running, summed over all attempts.
    :param tokens_per_s: generated tokens per second.
    :param output: URI of the answers.
    :param errors: URI of the error rows alone; None when there is none.
    :param prompt_tokens: tokens of the prompts, as the engine counted them.
    :param completion_tokens: generated tokens, as the engine counted them.
    :param model: name the rows were sent to.
    :param attempts: how often the batch was started until it was done.
    :param resumed_rows: rows the last attempt found already committed.
    :param gpu_seconds: the GPUs' time, where the spec says how many there are, else 0.
    :param tokens_per_gpu_second: prompt and generated tokens per second of a GPU, else 0.
    :param fingerprint: what identifies input, model and parameters.
    :param completion_id: random; another one once the failed rows were sent again, or all rows were.
    """

    rows: int
    ok: int
    failed: int
    seconds: float
    tokens_per_s: float
    output: str
    errors: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""
    attempts: int = 1
    resumed_rows: int = 0
    gpu_seconds: float = 0.0
    tokens_per_gpu_second: float = 0.0
    fingerprint: str = ""
    completion_id: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> BatchSummary:
        """Inverse of :meth:`to_dict`; fields that a later version wrote are left out.

        Raises TypeError where one is missing that every version writes.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in raw.items() if key in known})
