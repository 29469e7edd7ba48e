"""What a client may ask of ``POST /v1/batches``: a request's JSON in, a validated job out. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_arcadia.batch import BatchSpec
from airflow_arcadia.batch.openai_format import CHAT, URLS
from airflow_arcadia.exceptions import BatchInputError

MAX_REQUEST_BYTES = 2**20
_MAX_DEPTH = 64
_MAX_METADATA, _MAX_KEY, _MAX_VALUE = 16, 64, 512
"""OpenAI's limits on metadata: pairs, and characters of a key and a value."""
_CLIENT_OPTIONS = frozenset(
    {"limit", "max_in_flight", "max_attempts", "max_failed_rows", "max_failed_fraction", "overwrite"}
    | {"on_change", "retry_failed_only", "prompt_column", "prompt_template", "prompt_as", "input_format"}
    | {"columns_as_parameters", "ordering", "num_gpus"}
    | {"request_timeout_s", "endpoint_timeout_s", "hang_timeout_s"}
)
"""Options of a client that is not the run's own task: none that takes the server's memory or disk."""
_CLIENT_LIMITS = {"max_in_flight": 4096, "max_attempts": 100}
_NOT_OF_UPLOADS = frozenset({"input_format", "overwrite", "on_change", "retry_failed_only", "keep_segments"})
"""Options without a meaning where each batch has files of its own, of JSON Lines."""
_UPLOAD = re.compile(r"file-\w+")
_WINDOW = re.compile(r"(\d{1,7})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_WINDOW_S = 30 * 86400


@dataclass(frozen=True)
class BatchRequest:
    """A valid request.

    :param endpoint: OpenAI's ``endpoint``: one of the URLs a row may name.
    :param metadata: OpenAI's ``metadata``.
    :param upload: id of the uploaded file that has the rows: input and output of ``spec`` are then still to
        be set. None where ``spec`` names URIs.
    :param window: OpenAI's ``completion_window``, and how many seconds that are; None sets no limit.
    :param output_life: OpenAI's ``output_expires_after``: its anchor and seconds, not judged here.
    """

    spec: BatchSpec
    endpoint: str
    metadata: dict[str, str] | None
    upload: str | None = None
    window: tuple[str, int] | None = None
    output_life: tuple[object, object] | None = None


def parse(body: object, model: str, *, trusted: bool) -> BatchRequest:
    """The job that a request asks for.

    :param model: name the worker serves.
    :param trusted: whether the run's own task sends it, which may use every option.

    Raises :class:`BatchInputError` or :class:`~airflow_arcadia.exceptions.ArcadiaConfigError` naming what is
    wrong with it. URIs are not judged here.
    """
    if not isinstance(body, dict):
        raise _wrong("The request is not a JSON object.", "Send the fields of OpenAI's Batch API.")
    _check_values(body)
    source = body.get("input_file_id")
    if not isinstance(source, str) or not source:
        raise _wrong("The request has no input_file_id.", "Upload the rows, or set it to their URI.")
    upload = source if _UPLOAD.fullmatch(source) else None
    metadata = _metadata(body.get("metadata"))
    options = _mapping(body.get("options"), "options")
    if not trusted:
        _check_options(options)
    if upload is None:
        output = body.get("output") or (metadata or {}).get("output") or f"{source}.answers.jsonl"
    else:
        _check_upload(body, options)
        output = f"{source}.answers"
    if not isinstance(output, str):
        raise _wrong("output is not text.", "Set it to the URI of the answers.")
    spec = BatchSpec.parse(
        options,
        input=source,
        output=output,
        model=model,
        parameters=_mapping(body.get("parameters"), "parameters"),
    )
    if not trusted:
        _check_limits(spec)
    life = body.get("output_expires_after")
    return BatchRequest(
        spec,
        _endpoint(body.get("endpoint")),
        metadata,
        upload,
        _window(body.get("completion_window")),
        None if life is None else _anchor_and_seconds(life),
    )


def _endpoint(given: object) -> str:
    if given is None:
        return CHAT
    if given not in URLS:
        raise _wrong("endpoint is not supported.", f"Use one of {', '.join(URLS)}.")
    return str(given)


def _window(given: object) -> tuple[str, int] | None:
    if given is None:
        return None
    found = _WINDOW.fullmatch(given) if isinstance(given, str) and given.isascii() else None
    seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
    if not 0 < seconds <= _LONGEST_WINDOW_S:
        raise _wrong("completion_window is not a time of at most 30 days.", "Use for example '24h' or '30m'.")
    return str(given), seconds


def _anchor_and_seconds(given: object) -> tuple[object, object]:
    pair = _mapping(given, "output_expires_after")
    return pair.get("anchor"), pair.get("seconds")


def _check_upload(body: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise :class:`BatchInputError` for what a batch with files of its own cannot have."""
    if body.get("output") is not None:
        raise _wrong(
            "The request has an output and an uploaded input.",
            "Fetch the answers by output_file_id, or name the input by its URI, too.",
        )
    if given := sorted(_NOT_OF_UPLOADS & set(options)):
        raise _wrong(f"options has {given[0]!r}, and the input is an upload.", "Leave it out.")


def _metadata(given: object) -> dict[str, str] | None:
    if given is None:
        return None
    pairs = _mapping(given, "metadata")
    if len(pairs) > _MAX_METADATA:
        raise _wrong(f"metadata has more than {_MAX_METADATA} pairs.", "Use fewer.")
    for key, value in pairs.items():
        if not isinstance(value, str) or len(key) > _MAX_KEY or len(value) > _MAX_VALUE:
            raise _wrong(
                "metadata has a pair that is too long or not text.",
                f"Use text of at most {_MAX_KEY} characters for a key and {_MAX_VALUE} for a value.",
            )
    return pairs


def _mapping(given: object, what: str) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise _wrong(f"{what} is not an object.", f"Send {what} as a JSON object.")
    return given


def _check_options(options: Mapping[str, Any]) -> None:
    if unknown := sorted(set(options) - _CLIENT_OPTIONS):
        raise _wrong(
            f"options has {unknown[0][:60]!r}, which a client cannot set.",
            f"Use some of {', '.join(sorted(_CLIENT_OPTIONS))}.",
        )


def _check_limits(spec: BatchSpec) -> None:
    for name, most in _CLIENT_LIMITS.items():
        if getattr(spec, name) > most:
            raise _wrong(f"{name} is {getattr(spec, name)}.", f"Use at most {most}.")


def _check_values(body: object) -> None:
    """Raise :class:`BatchInputError` for nesting or text that cannot be stored and passed on."""
    for value, depth in _walk(body):
        if depth > _MAX_DEPTH:
            raise _wrong(f"The request is nested more than {_MAX_DEPTH} levels deep.", "Send a flatter one.")
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise _wrong("The request has text that is not Unicode.", "Send whole characters.") from error


def _walk(body: object) -> Iterator[tuple[object, int]]:
    """Every value and key with its depth; what lies deeper than is allowed is not entered."""
    waiting = [(body, 0)]
    while waiting:
        value, depth = waiting.pop()
        yield value, depth
        if isinstance(value, dict):
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list):
            waiting += [(item, depth + 1) for item in value]


def _wrong(what: str, what_to_do: str) -> BatchInputError:
    return BatchInputError(what, what_to_do=what_to_do)
