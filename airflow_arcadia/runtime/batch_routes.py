"""``/v1/batches``: OpenAI's four calls, on :class:`~airflow_arcadia.runtime.batch_jobs.BatchJobs`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from airflow_arcadia.batch.batch_api import TOKEN_HEADER
from airflow_arcadia.exceptions import ArcadiaError
from airflow_arcadia.runtime.access import Secret, is_loopback
from airflow_arcadia.runtime.asgi import Receive, Scope, Send, header, read_json, refuse, respond
from airflow_arcadia.runtime.batch_jobs import Batch, BatchJobs, TooManyBatches
from airflow_arcadia.runtime.batch_request import MAX_REQUEST_BYTES
from airflow_arcadia.runtime.request_limits import RequestRefused, check_length, limited

PREFIX = "/v1/batches"
_DEFAULT_PAGE, _LONGEST_PAGE = 20, 100


def is_batch_path(path: str) -> bool:
    """Whether the path belongs to the Batch API."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


@dataclass(frozen=True)
class BatchAccess:
    """Who may use the Batch API.

    :param token: what only the run's own tasks hold: their batches may name any URI.
    :param keyed: whether the server asks for an API key, which was checked before.
    :param host: address the server listens on.
    :param url: where others reach it.
    """

    token: Secret | None
    keyed: bool
    host: str
    url: str

    def is_trusted(self, scope: Scope) -> bool:
        """Whether the run's own task sends this request."""
        return self.token is not None and self.token.matches(header(scope, TOKEN_HEADER.lower().encode()))

    def check(self, scope: Scope) -> None:
        """Raise :class:`RequestRefused` for a client that may not use the Batch API at all."""
        host = _host(header(scope, b"host").decode("latin-1"))
        origin = header(scope, b"origin").decode("latin-1")
        if origin and _host(origin.partition("://")[2]) != host:
            raise RequestRefused(403, "Batches are not taken from web pages of another origin.")
        if self.keyed:
            return
        if not is_loopback(self.host):
            raise RequestRefused(
                403,
                "This worker listens beyond its own machine without an API key, so it takes no batches of "
                "clients. Set a key: the password of the arcadia connection.",
            )
        # Without a key a browser could be led here by a name of its own that resolves to this machine.
        if not is_loopback(host) and host != _host(self.url.partition("://")[2]):
            raise RequestRefused(403, "The Host header does not name this worker.")


class BatchRoutes:
    """See the module.

    :param jobs: the batches.
    :param access: who may use them.
    """

    def __init__(self, jobs: BatchJobs, access: BatchAccess) -> None:
        self._jobs, self._access = jobs, access

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request of the Batch API."""
        trusted = self._access.is_trusted(scope)
        if not trusted:
            self._access.check(scope)
        method, parts = scope["method"], scope["path"].removeprefix(PREFIX).strip("/").split("/")
        if parts == [""] and method == "POST":
            await self._create(scope, receive, send, trusted=trusted)
        elif parts == [""] and method == "GET":
            await respond(send, 200, self._list(scope, trusted=trusted))
        elif (found := self._jobs.find(parts[0], trusted=trusted)) is None:
            await refuse(send, 404, "There is no batch of this id.")
        elif len(parts) == 1 and method == "GET":
            await respond(send, 200, found.to_openai())
        elif parts[1:] == ["cancel"] and method == "POST":
            self._jobs.cancel(found)
            await respond(send, 200, found.to_openai())
        else:
            await refuse(send, 405, f"{method} is not allowed here.")

    async def _create(self, scope: Scope, receive: Receive, send: Send, *, trusted: bool) -> None:
        kind = header(scope, b"content-type").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise RequestRefused(415, "The request's Content-Type must be application/json.")
        check_length(scope, MAX_REQUEST_BYTES)
        try:
            batch = self._jobs.create(await read_json(limited(receive, MAX_REQUEST_BYTES)), trusted=trusted)
        except TooManyBatches as error:
            raise RequestRefused(429, str(error)) from error
        except (ArcadiaError, ValueError) as error:
            await refuse(send, 400, str(error))
        else:
            await respond(send, 200, batch.to_openai())

    def _list(self, scope: Scope, *, trusted: bool) -> dict[str, Any]:
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        limit = query.get("limit", [str(_DEFAULT_PAGE)])[-1]
        if not limit.isascii() or not limit.isdecimal() or not 1 <= int(limit[:9]) <= _LONGEST_PAGE:
            raise RequestRefused(400, f"limit must be a number from 1 to {_LONGEST_PAGE}.")
        batches = self._jobs.list(trusted=trusted)
        if "after" in query:
            names = [batch.id for batch in batches]
            if query["after"][-1] not in names:
                raise RequestRefused(400, "after does not name a batch.")
            batches = batches[names.index(query["after"][-1]) + 1 :]
        return _page(batches[: int(limit)], has_more=len(batches) > int(limit))


def _page(batches: list[Batch], *, has_more: bool) -> dict[str, Any]:
    first, last = (batches[0].id, batches[-1].id) if batches else (None, None)
    data = [batch.to_openai() for batch in batches]
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}


def _host(authority: str) -> str:
    """The host of ``host:port``, in lower case; empty when it is neither."""
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""
