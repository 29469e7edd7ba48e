"""``/v1/files``: OpenAI's calls on the files of :class:`~airflow_arcadia.runtime.files.store.FileStore`.

A batch that runs has an output file and an error file, too: their content is what is committed until now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from urllib.parse import quote

from airflow_arcadia.runtime.asgi import Receive, Scope, Send, header, refuse, respond, run_while_connected
from airflow_arcadia.runtime.batch_jobs import BatchJobs
from airflow_arcadia.runtime.client_access import ClientAccess
from airflow_arcadia.runtime.files.form import FormError
from airflow_arcadia.runtime.files.store import FileRefused, FileStore, StoredFile, blocks
from airflow_arcadia.runtime.files.upload import receive_file
from airflow_arcadia.runtime.pages import page, query_of
from airflow_arcadia.runtime.request_limits import RequestRefused

PREFIX = "/v1/files"
_LONGEST_PAGE = 10_000
_FORM_BYTES = 64 * 1024
"""What the form around a file may take."""
_BLOCK = 256 * 1024
_UNKNOWN = "There is no file with this id."


def is_file_path(path: str) -> bool:
    """Whether the path belongs to the Files API."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


class FileRoutes:
    """See the module.

    :param store: the files.
    :param jobs: the batches that read and write them.
    :param access: who may use them.
    """

    def __init__(self, store: FileStore, jobs: BatchJobs, access: ClientAccess) -> None:
        self._store, self._jobs, self._access = store, jobs, access

    @property
    def longest_body(self) -> int:
        """Bytes that the body of an upload may have."""
        return self._store.limits.file_bytes + _FORM_BYTES

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request of the Files API."""
        if not self._access.is_trusted(scope):
            self._access.check(scope)
        method, parts = scope["method"], scope["path"].removeprefix(PREFIX).strip("/").split("/")
        if parts == [""] and method == "POST":
            await self._upload(scope, receive, send)
        elif parts == [""] and method == "GET":
            await respond(send, 200, self._list(scope))
        elif (file := self._find(parts[0])) is None:
            await refuse(send, 404, _UNKNOWN)
        elif len(parts) == 1 and method == "GET":
            await respond(send, 200, file.to_openai())
        elif len(parts) == 1 and method == "DELETE":
            await self._delete(file, send)
        elif parts[1:] == ["content"] and method == "GET":
            await run_while_connected(receive, self._send_content(file.id, send))
        else:
            await refuse(send, 405, f"{method} is not allowed here.")

    def _find(self, file_id: str) -> StoredFile | None:
        unfinished = (file for file in self._jobs.unfinished_files() if file.id == file_id)
        return self._store.find(file_id) or next(unfinished, None)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = header(scope, b"content-type").partition(b";")[0].strip().lower()
        if kind != b"multipart/form-data":
            raise RequestRefused(415, "The request's Content-Type must be multipart/form-data.")
        try:
            file = await receive_file(self._store, scope, receive)
        except FileRefused as error:
            raise RequestRefused(error.status, str(error)) from error
        except FormError as error:
            raise RequestRefused(400, str(error)) from error
        except OSError as error:
            raise RequestRefused(507, f"The worker cannot store the file: {error.strerror}.") from error
        await respond(send, 200, file.to_openai())

    def _list(self, scope: Scope) -> dict[str, object]:
        query = query_of(scope)
        if query.get("order", "desc") not in {"asc", "desc"}:
            raise RequestRefused(400, "order must be 'asc' or 'desc'.")
        files = self._store.list()
        stored = {file.id for file in files}
        files += [file for file in self._jobs.unfinished_files() if file.id not in stored]
        files.sort(key=lambda file: file.created_at)
        if query.get("order") != "asc":
            files.reverse()
        if "purpose" in query:
            files = [file for file in files if file.purpose == query["purpose"]]
        return page(files, query, default=_LONGEST_PAGE, longest=_LONGEST_PAGE)

    async def _delete(self, file: StoredFile, send: Send) -> None:
        if self._jobs.uses(file.id):
            raise RequestRefused(409, "A batch that runs uses this file. Wait for its end, or cancel it.")
        await asyncio.to_thread(self._store.remove, file.id)
        await respond(send, 200, {"id": file.id, "object": "file", "deleted": True})

    async def _send_content(self, file_id: str, send: Send) -> None:
        # A batch may end, and what it was writing become a file of the store, at any moment.
        with self._jobs.reading(file_id) as unfinished:
            file = self._find(file_id)
            content = (
                _joined(unfinished) if unfinished is not None else blocks(self._store.path(file_id), _BLOCK)
            )
            try:
                first = await _next(content)
            except FileNotFoundError:
                file = None
            if file is None:
                await refuse(send, 404, _UNKNOWN)
                return
            headers = [
                (b"content-type", b"application/octet-stream"),
                (b"content-disposition", f"attachment; filename*=UTF-8''{quote(file.filename)}".encode()),
                (b"x-content-type-options", b"nosniff"),
            ]
            if unfinished is None:
                headers.append((b"content-length", str(file.bytes).encode()))
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while first is not None:
                await send({"type": "http.response.body", "body": first, "more_body": True})
                first = await _next(content)
        await send({"type": "http.response.body", "body": b""})


async def _next(content: Iterator[bytes]) -> bytes | None:
    """The next block, read by a thread: the disk must not hold up the server."""
    return await asyncio.to_thread(next, content, None)


def _joined(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Lines in blocks."""
    block = bytearray()
    for line in lines:
        block += line
        if len(block) >= _BLOCK:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)
