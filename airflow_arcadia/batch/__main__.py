"""``python -m airflow_arcadia.batch run``: a batch from the command line."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import orjson

from airflow_arcadia.batch import BatchSpec, Endpoint, Progress, check_input, run_batch
from airflow_arcadia.exceptions import ArcadiaConfigError, ArcadiaError, BatchInputError

EXAMPLE = """\
example:
  python -m airflow_arcadia.batch run --input prompts.jsonl --output answers.jsonl \\
      --endpoint http://127.0.0.1:21002 --model qwen --max-tokens 128

Input is JSON Lines: OpenAI's batch format (custom_id, url, body), or {"prompt": ...}, {"messages": [...]},
{"input": ...} (embeddings); or CSV or Parquet with a prompt column or a template over the columns. JSON Lines
and CSV may end in .gz or .zst. Beside the output appear <output>.errors.jsonl and <output>.summary.json.
Interrupted, the same command goes on after the last committed row. Exit status: 0 all rows answered, 1 the
batch stopped before its end, 2 bad input, 3 some rows failed.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        return _dry_run(options) if options.dry_run else _run(options)
    except (BatchInputError, ArcadiaConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ArcadiaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    if not options.endpoint:
        raise BatchInputError("No endpoint was given.", what_to_do="Add --endpoint http://host:port.")
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    key = os.environ.get(options.api_key_env) or None
    summary = run_batch(
        _spec(options),
        [Endpoint(url, key) for url in options.endpoint],
        on_progress=None if options.quiet else _print_progress,
        progress_interval_s=options.progress_interval,
        should_stop=lambda: stopped,
    )
    print(orjson.dumps(summary.to_dict(), option=orjson.OPT_INDENT_2).decode())
    return 3 if summary.failed else 0


def _dry_run(options: argparse.Namespace) -> int:
    print(f"{check_input(_spec(options))} rows can be read.")
    return 0


def _spec(options: argparse.Namespace) -> BatchSpec:
    parameters = _object("--parameters", options.parameters)
    schema = options.response_schema
    for name in ("max_tokens", "temperature", "top_p", "seed"):
        value = getattr(options, name)
        if value is not None:
            parameters[name] = value
    return BatchSpec(
        input=options.input,
        output=options.output,
        model=options.model,
        parameters=parameters,
        limit=options.limit,
        max_in_flight=options.max_in_flight,
        max_in_flight_bytes=options.max_in_flight_bytes,
        max_attempts=options.max_attempts,
        request_timeout_s=options.request_timeout,
        hang_timeout_s=options.hang_timeout,
        endpoint_timeout_s=options.endpoint_timeout,
        max_failed_rows=options.max_failed_rows,
        max_failed_fraction=options.max_failed_fraction,
        overwrite=options.overwrite,
        on_change=options.on_change,
        keep_segments=options.keep_segments,
        retry_failed_only=options.retry_failed_only,
        segment_seconds=options.segment_seconds,
        ordering=options.ordering,
        prompt_column=options.prompt_column,
        prompt_template=options.prompt_template,
        prompt_as=options.prompt_as,
        columns_as_parameters=options.column_as_parameter,
        input_format=options.input_format,
        response_schema=_object("--response-schema", schema) if schema is not None else None,
        num_gpus=options.num_gpus,
    )


def _object(option: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ArcadiaConfigError(
            f"{option} is not valid JSON: {error}.", what_to_do="Quote it for the shell."
        ) from error
    if not isinstance(found, dict):
        raise ArcadiaConfigError(
            f"{option} is not a JSON object.", what_to_do='Write it like {"min_tokens": 8}.'
        )
    return found


def _print_progress(progress: Progress) -> None:
    print(progress, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_arcadia.batch",
        description="Answer a file of prompts with OpenAI-compatible servers: resumable, each row once.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="run")
    run = commands.add_parser(
        "run",
        help="answer every row of a file",
        description="Answer every row of a file.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    files = run.add_argument_group("files")
    files.add_argument("--input", required=True, metavar="URI", help="the rows")
    files.add_argument("--output", required=True, metavar="URI", help="the answers, in the rows' order")
    files.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    files.add_argument(
        "--on-change",
        choices=("fail", "restart"),
        default="fail",
        help="when the output belongs to another input, model or parameters (default: fail)",
    )
    files.add_argument("--keep-segments", action="store_true", help="leave the committed segments")
    files.add_argument(
        "--retry-failed-only", action="store_true", help="send only the rows that failed once more"
    )
    files.add_argument(
        "--input-format", choices=("jsonl", "csv", "parquet"), help="default: as the input's name ends"
    )
    files.add_argument("--limit", type=int, metavar="N", help="answer only the first N rows")
    files.add_argument("--dry-run", action="store_true", help="read and check every row, and send none")
    prompt = run.add_argument_group("prompt")
    prompt.add_argument("--prompt-column", metavar="NAME", help="column or key that holds the prompt")
    prompt.add_argument("--prompt-template", metavar="JINJA", help="prompt as a template over the columns")
    prompt.add_argument(
        "--column-as-parameter",
        action="append",
        default=[],
        metavar="NAME",
        help="column of a table that is a request field of its row, e.g. max_tokens; repeat for several",
    )
    prompt.add_argument(
        "--prompt-as",
        choices=("completion", "chat"),
        default="completion",
        help="send a prompt as it is, or as a user's message (default: completion)",
    )
    model = run.add_argument_group("model")
    model.add_argument(
        "--endpoint", action="append", metavar="URL", help="base URL of a server; repeat for several"
    )
    model.add_argument("--model", default="", help="default: the only one the endpoint serves")
    model.add_argument(
        "--api-key-env",
        default="ARCADIA_API_KEY",
        metavar="NAME",
        help="environment variable with the API key (default: ARCADIA_API_KEY)",
    )
    sampling = run.add_argument_group("parameters of rows that do not set their own")
    sampling.add_argument("--max-tokens", type=int, metavar="N")
    sampling.add_argument("--temperature", type=float, metavar="T")
    sampling.add_argument("--top-p", type=float, metavar="P")
    sampling.add_argument("--seed", type=int, metavar="N")
    sampling.add_argument("--parameters", default="{}", metavar="JSON", help="any other fields, as an object")
    sampling.add_argument(
        "--response-schema", metavar="JSON", help="JSON schema of the answers; a misfit becomes an error row"
    )
    limits = run.add_argument_group("limits")
    limits.add_argument(
        "--max-in-flight", type=int, default=512, metavar="N", help="rows in flight per endpoint"
    )
    limits.add_argument(
        "--max-in-flight-bytes", type=int, metavar="N", help="bytes of rows in flight (default: by memory)"
    )
    limits.add_argument("--max-attempts", type=int, default=5, metavar="N", help="attempts per row")
    limits.add_argument(
        "--request-timeout", type=float, default=3600.0, metavar="SECONDS", help="for one answer"
    )
    limits.add_argument(
        "--hang-timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="without a generated token, after which an engine counts as hung; 0: never",
    )
    limits.add_argument(
        "--endpoint-timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="to wait while no endpoint answers",
    )
    limits.add_argument("--max-failed-rows", type=int, metavar="N", help="stop when more rows have failed")
    limits.add_argument(
        "--max-failed-fraction", type=float, metavar="SHARE", help="the same, as a share of all rows (0 to 1)"
    )
    limits.add_argument(
        "--ordering",
        choices=("prefix", "input"),
        default="prefix",
        help="send rows that begin alike together, or in the input's order (default: prefix)",
    )
    limits.add_argument("--segment-seconds", type=float, default=10.0, metavar="SECONDS")
    limits.add_argument(
        "--num-gpus", type=float, default=0.0, metavar="N", help="for the summary's cost line"
    )
    limits.add_argument("--progress-interval", type=float, default=5.0, metavar="SECONDS")
    limits.add_argument("--quiet", action="store_true", help="print no progress")
    return parser


if __name__ == "__main__":
    sys.exit(main())
