"""Lists in pages, as OpenAI's API gives them: ``limit``, ``after``, and whether there are more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import parse_qs

from airflow_arcadia.runtime.asgi import Scope
from airflow_arcadia.runtime.request_limits import RequestRefused


class Item(Protocol):
    """What can be listed."""

    @property
    def id(self) -> str:
        """By which ``after`` names it."""

    def to_openai(self) -> dict[str, Any]:
        """OpenAI's object."""


def query_of(scope: Scope) -> Mapping[str, str]:
    """The parameters of a request's URL; of several with one name, the last."""
    found = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    return {name: values[-1] for name, values in found.items()}


def page(items: Sequence[Item], query: Mapping[str, str], *, default: int, longest: int) -> dict[str, Any]:
    """The page of all items that a request asks for.

    :param default: ``limit`` of a request that names none.
    :param longest: the highest ``limit``.

    Raises :class:`RequestRefused` for parameters that make no sense.
    """
    limit = query.get("limit", str(default))
    if not limit.isascii() or not limit.isdecimal() or not 1 <= int(limit[:9]) <= longest:
        raise RequestRefused(400, f"limit must be a number from 1 to {longest}.")
    if "after" in query:
        ids = [item.id for item in items]
        if query["after"] not in ids:
            raise RequestRefused(400, "after does not name anything in this list.")
        items = items[ids.index(query["after"]) + 1 :]
    shown = items[: int(limit)]
    return {
        "object": "list",
        "data": [item.to_openai() for item in shown],
        "first_id": shown[0].id if shown else None,
        "last_id": shown[-1].id if shown else None,
        "has_more": len(items) > len(shown),
    }
