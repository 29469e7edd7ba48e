"""Many rows in one request, and each one's answer as soon as it is there: the lines of it. Pure.

``POST /v1/arcadia/bundle`` takes a line a row, ``<url> <JSON>``, and answers with a line a row, ``<number of
the row, from 0> <status> <Retry-After, or -> <JSON>``, in the order in which they are answered. What HTTP
costs is paid once for all of them. ``GET`` tells that a server has it, by its path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import orjson

from airflow_arcadia.batch.openai_format import CHAT, COMPLETIONS, EMBEDDINGS
from airflow_arcadia.batch.transport.http_client import Response

PATH = "/v1/arcadia/bundle"
URLS = frozenset({CHAT, COMPLETIONS, EMBEDDINGS})
"""What a row may ask for."""


def is_told(answer: Response) -> bool:
    """Whether the answer to ``GET`` is one of a server that takes bundles: some answer 200 to everything."""
    try:
        told = orjson.loads(answer.body) if answer.status == 200 else None
    except orjson.JSONDecodeError:
        return False
    return isinstance(told, dict) and told.get("path") == PATH


def pack(rows: Iterable[tuple[str, bytes]]) -> bytes:
    """The request for rows of URL and JSON in one line each."""
    return b"\n".join([b"%b %b" % (url.encode(), body) for url, body in rows])


def unpack(data: bytes) -> list[tuple[str, bytes]]:
    """The rows of a request. Raises ValueError for a line that is no row."""
    rows = []
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n")):
        url, space, body = line.partition(b" ")
        if not space:
            raise ValueError(f"line {number} is no URL and JSON")
        rows.append((url.decode("latin-1"), body))
    return rows


def pack_answer(number: int, answer: Response) -> bytes:
    """The line of an answered row."""
    after = (answer.retry_after or "-").replace(" ", "_").encode("latin-1")
    body = answer.body
    if b"\n" in body:
        # JSON has line ends only between its words; what is no JSON is a message for people.
        body = body.replace(b"\n", b" ")
    return b"%d %d %b %b\n" % (number, answer.status, after, body)


class Answers:
    """Reads answers' lines out of chunks that end anywhere."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[tuple[int, Response]]:
        """Number and answer of every row whose line is whole now. Raises ValueError for a wrong line."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            number, status, after, body = line.split(b" ", 3)
            yield int(number), Response(int(status), body, None if after == b"-" else after.decode("latin-1"))
