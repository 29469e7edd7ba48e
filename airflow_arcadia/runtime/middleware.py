"""What is added to vLLM's server: one ASGI middleware with FastChat's protocol, the API key and draining.

vLLM's ``--middleware`` takes a class path and calls the class with the inner application. The class sees the
lifespan events too, so that registering and draining happen in the server's own process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import traceback
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

from airflow_arcadia.batch import Endpoint
from airflow_arcadia.batch.transport import bundles
from airflow_arcadia.runtime import batch_routes, bundle_route
from airflow_arcadia.runtime.access import OPEN_PATHS, Secret, bearer_token, read_secret
from airflow_arcadia.runtime.asgi import App, ClientLeft, Message, Receive, Scope, Send, refuse, respond
from airflow_arcadia.runtime.asgi_client import AsgiClient
from airflow_arcadia.runtime.batch_jobs import BatchJobs
from airflow_arcadia.runtime.batch_routes import is_batch_path
from airflow_arcadia.runtime.cpu_budget import give_way
from airflow_arcadia.runtime.endpoint_caller import EndpointCaller
from airflow_arcadia.runtime.fastchat import protocol
from airflow_arcadia.runtime.fastchat.conversation import describe
from airflow_arcadia.runtime.fastchat.registration import Registration
from airflow_arcadia.runtime.fastchat.routes import STATUS_PATH, FastChatRoutes
from airflow_arcadia.runtime.in_process_client import InProcessClient
from airflow_arcadia.runtime.log import say
from airflow_arcadia.runtime.request_limits import RequestRefused, check_length, limited
from airflow_arcadia.runtime.vllm_patches import env_cache
from airflow_arcadia.worker import PlacedWorker, WorkerStatus

_POLL_S = 0.1
_NO_KEY = "A valid API key is needed: send it as Authorization: Bearer."
_DRAINING = "This worker is draining and takes no new requests."
_POLICY_VIOLATION, _TRY_AGAIN_LATER = 1008, 1013
"""Codes that close a WebSocket (RFC 6455 and IANA's registry)."""


class ArcadiaMiddleware:
    """See the module. Configured by the worker's environment (``PlacedWorker.from_env``).

    Raises :class:`~airflow_arcadia.exceptions.ArcadiaConfigError` for an unusable key file.
    """

    def __init__(self, app: App, spec: PlacedWorker | None = None) -> None:
        self._app = app
        self._spec = spec or PlacedWorker.from_env(os.environ)
        key = read_secret(self._spec.api_key_file, "API key")
        self._key = Secret(key) if key is not None else None
        self._status = WorkerStatus.STARTING
        self._in_flight = 0
        self._scope: Scope = {"asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http"}
        self._registration: Registration | None = None
        self._tasks: list[asyncio.Task[None]] = []
        folder = Path(self._spec.lease_file).parent if self._spec.lease_file else None
        self._client = AsgiClient(app, self._scope)
        self._rows = EndpointCaller(app, self._scope)
        self._fastchat = FastChatRoutes(
            self._client, self._spec.served_model_name, self._worker_status, self._describe
        )
        self._batches = BatchJobs(
            Endpoint(self._spec.url),
            self._spec.served_model_name,
            folder,
            connect=lambda _: InProcessClient(self._rows, self._client),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] == "lifespan":
            if "app" in scope:
                self._scope["app"] = scope["app"]
            await self._app(scope, receive, self._watch_lifespan(send))
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await self._websocket(scope, receive, send)

    # -- requests --------------------------------------------------------------------------------------

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            check_length(scope)
            await self._dispatch(scope, limited(receive), watched)
        except RequestRefused as error:
            if not started:
                await self._refuse(scope, send, error.status, str(error))
        except ClientLeft:
            return

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path in OPEN_PATHS:
            await self._app(scope, receive, send)
        elif path == STATUS_PATH:
            await self._fastchat.handle(scope, receive, send)
        elif not self._is_authorized(scope):
            await self._refuse(scope, send, 401, _NO_KEY)
        elif self._status is WorkerStatus.DRAINING:
            await self._refuse(scope, send, 503, _DRAINING)
        else:
            with self._counted():
                await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if is_batch_path(path):
            await batch_routes.handle(self._batches, scope, receive, send)
        elif path == bundles.PATH:
            await bundle_route.handle(self._rows, scope, receive, send)
        elif path in self._fastchat:
            await self._fastchat.handle(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._is_authorized(scope):
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": _NO_KEY})
        elif self._status is WorkerStatus.DRAINING:
            await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER, "reason": _DRAINING})
        else:
            with self._counted():
                await self._app(scope, receive, send)

    def _is_authorized(self, scope: Scope) -> bool:
        return self._key is None or self._key.matches(bearer_token(scope))

    async def _refuse(self, scope: Scope, send: Send, status: int, message: str) -> None:
        if scope["path"] in self._fastchat:
            body = {"text": message, "error_code": protocol.error_code(status, message)}
            await respond(send, status, body)
        else:
            await refuse(send, status, message)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a request as running: draining waits for it."""
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def _worker_status(self) -> dict[str, Any]:
        """FastChat's ``worker_status``; no model names before the model is served or while draining."""
        ready = self._status is WorkerStatus.READY
        return {
            "model_names": [self._spec.served_model_name] if ready else [],
            "speed": 1,
            "queue_length": self._in_flight + self._rows.rows,
        }

    def _describe(self) -> dict[str, Any]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            self._spec.model, trust_remote_code=self._spec.trust_remote_code
        )
        return describe(tokenizer)

    # -- start and end of the server -------------------------------------------------------------------

    def _watch_lifespan(self, send: Send) -> Send:
        async def watched(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                loop = asyncio.get_running_loop()
                loop.add_signal_handler(signal.SIGUSR1, self._start_draining)
                env_cache.register()
                give_way(self._spec.num_gpus)
                self._start(self._open())
            await send(message)

        return watched

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a background task; one that fails ends the worker with its cause."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._end_on_failure)
        self._tasks.append(task)

    def _end_on_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            lines = "".join(traceback.format_exception(error)).rstrip()
            say(f"a background task of the worker failed\n{lines}")
            self._fail(f"{type(error).__name__}: {error}")

    def _fail(self, cause: str) -> None:
        """End the server because the worker cannot go on."""
        if self._status is not WorkerStatus.FAILED:
            self._status = WorkerStatus.FAILED
            say(f"the worker fails: {cause}")
            os.kill(os.getpid(), signal.SIGTERM)

    async def _open(self) -> None:
        """Become ready, and known to the controller, once a token was generated over the open socket."""
        await self._wait_until_served()
        self._status = WorkerStatus.READY
        say(f"ready: {self._spec.served_model_name} at {self._spec.url}")
        self._batches.resume()
        if self._spec.controller_address:
            self._registration = Registration(
                self._spec.controller_address, self._spec.url, self._worker_status
            )
            await self._registration.keep()

    async def _wait_until_served(self) -> None:
        while not await self._listens():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(_POLL_S)
        body = {"model": self._spec.served_model_name, "prompt": "1", "max_tokens": 1}
        status, answer = await self._client.call_json("POST", "/v1/completions", body)
        if status not in {200, 404}:  # an embedding model has no completions
            say(f"the first generation failed with HTTP {status}: {str(answer)[:500]}")

    async def _listens(self) -> bool:
        host = "127.0.0.1" if self._spec.host in {"0.0.0.0", "::"} else self._spec.host  # noqa: S104
        try:
            _, writer = await asyncio.open_connection(host, self._spec.port)
        except OSError:
            return False
        writer.close()
        return True

    def _start_draining(self) -> None:
        if self._status not in {WorkerStatus.DRAINING, WorkerStatus.FAILED}:
            self._status = WorkerStatus.DRAINING
            self._start(self._drain())

    async def _drain(self) -> None:
        """Leave the controller, let running requests end, then end the server as SIGTERM does."""
        say(f"draining {self._in_flight} requests")
        self._tasks[0].cancel()
        if self._registration is not None:
            await self._registration.leave()
        await self._batches.stop()
        deadline = asyncio.get_running_loop().time() + self._spec.drain_seconds
        while self._in_flight and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)
