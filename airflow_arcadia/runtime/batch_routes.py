"""``/v1/batches``: OpenAI's four calls, on :class:`~airflow_arcadia.runtime.batch_jobs.BatchJobs`."""

from __future__ import annotations

from airflow_arcadia.batch.batch_api import SUBMISSION
from airflow_arcadia.exceptions import ArcadiaError
from airflow_arcadia.runtime.asgi import Receive, Scope, Send, header, read_json, refuse, respond
from airflow_arcadia.runtime.batch_jobs import BatchJobs, TooManyBatches
from airflow_arcadia.runtime.batch_request import MAX_REQUEST_BYTES
from airflow_arcadia.runtime.client_access import ClientAccess
from airflow_arcadia.runtime.files.store import FileRefused
from airflow_arcadia.runtime.pages import page, query_of
from airflow_arcadia.runtime.request_limits import RequestRefused, check_length, limited

PREFIX = "/v1/batches"
_DEFAULT_PAGE, _LONGEST_PAGE = 20, 100


def is_batch_path(path: str) -> bool:
    """Whether the path belongs to the Batch API."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


class BatchRoutes:
    """See the module.

    :param jobs: the batches.
    :param access: who may use them.
    """

    def __init__(self, jobs: BatchJobs, access: ClientAccess) -> None:
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
            batches = self._jobs.list(trusted=trusted)
            found = page(batches, query_of(scope), default=_DEFAULT_PAGE, longest=_LONGEST_PAGE)
            await respond(send, 200, found)
        elif (batch := self._jobs.find(parts[0], trusted=trusted)) is None:
            await refuse(send, 404, "There is no batch with this id.")
        elif len(parts) == 1 and method == "GET":
            await respond(send, 200, batch.to_openai())
        elif parts[1:] == ["cancel"] and method == "POST":
            self._jobs.cancel(batch, query_of(scope).get(SUBMISSION))
            await respond(send, 200, batch.to_openai())
        else:
            await refuse(send, 405, f"{method} is not allowed here.")

    async def _create(self, scope: Scope, receive: Receive, send: Send, *, trusted: bool) -> None:
        kind = header(scope, b"content-type").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise RequestRefused(415, "The request's Content-Type must be application/json.")
        check_length(scope, MAX_REQUEST_BYTES)
        try:
            body = await read_json(limited(receive, MAX_REQUEST_BYTES))
            batch = self._jobs.create(body, trusted=trusted, submission=query_of(scope).get(SUBMISSION))
        except TooManyBatches as error:
            raise RequestRefused(429, str(error)) from error
        except FileRefused as error:
            raise RequestRefused(error.status, str(error)) from error
        except (ArcadiaError, ValueError) as error:
            await refuse(send, 400, str(error))
        else:
            await respond(send, 200, batch.to_openai())
