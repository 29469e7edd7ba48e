"""What is added to vLLM's server: one ASGI middleware with FastChat's protocol, the API key and draining.

vLLM's ``--middleware`` takes a class path and calls the class with the inner application. The class sees the
lifespan events too, so that registering and draining happen in the server's own process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
import traceback
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

from airflow_arcadia.batch import Endpoint
from airflow_arcadia.batch.transport import bundles
from airflow_arcadia.runtime import bundle_route
from airflow_arcadia.runtime.access import OPEN_PATHS, Secret, bearer_token, read_secret, read_storage_options
from airflow_arcadia.runtime.allowed_uris import AllowedUris
from airflow_arcadia.runtime.asgi import App, ClientLeft, Message, Receive, Scope, Send, refuse, respond
from airflow_arcadia.runtime.asgi_client import AsgiClient
from airflow_arcadia.runtime.batch_jobs import BatchJobs
from airflow_arcadia.runtime.batch_routes import BatchRoutes, is_batch_path
from airflow_arcadia.runtime.client_access import ClientAccess
from airflow_arcadia.runtime.cpu_budget import give_way
from airflow_arcadia.runtime.endpoint_caller import EndpointCaller
from airflow_arcadia.runtime.engine_monitor import EngineMonitor, Limits
from airflow_arcadia.runtime.fastchat import protocol
from airflow_arcadia.runtime.fastchat.conversation import describe
from airflow_arcadia.runtime.fastchat.gateway_server import GatewayServer
from airflow_arcadia.runtime.fastchat.registration import Registration
from airflow_arcadia.runtime.fastchat.routes import STATUS_PATH, FastChatRoutes
from airflow_arcadia.runtime.files.routes import FileRoutes, is_file_path
from airflow_arcadia.runtime.files.store import FileStore
from airflow_arcadia.runtime.files.store import Limits as FileLimits
from airflow_arcadia.runtime.first_generation import first_generation, wait_for_first_generation
from airflow_arcadia.runtime.in_process_client import InProcessClient
from airflow_arcadia.runtime.lease_extension import LeaseExtension
from airflow_arcadia.runtime.log import say
from airflow_arcadia.runtime.request_limits import MAX_BODY_BYTES, RequestRefused, check_length, limited
from airflow_arcadia.runtime.safe_redirects import refuse_redirects_to_other_hosts
from airflow_arcadia.runtime.server_reports import ask_to_end, report_registered
from airflow_arcadia.runtime.vllm_patches import header_timeout
from airflow_arcadia.runtime.worker_metrics import (
    METRICS_PATH,
    BatchCounters,
    WorkerMetrics,
    add_metrics,
    lease_expires_at,
)
from airflow_arcadia.worker import PlacedWorker, WorkerStatus

HEALTH_PATH = "/health"
_POLL_S = 0.1
_EXPIRY_POLL_S = 60.0
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
        self._cause = "the model is being loaded"
        """What stands in the way of its being ready."""
        self._in_flight = self._requests = 0
        self._started_at = time.monotonic()
        self._ready_seconds: float | None = None
        self._counters = BatchCounters()
        self._scope: Scope = {"asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http"}
        self._registration: Registration | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        folder = Path(self._spec.lease_file).parent if self._spec.lease_file else None
        self._client = AsgiClient(app, self._scope)
        self._rows = EndpointCaller(app, self._scope)
        self._fastchat = FastChatRoutes(
            self._client, self._spec.served_model_name, self._worker_status, self._describe
        )
        limits = FileLimits(self._spec.max_file_bytes, self._spec.max_files_bytes, self._spec.file_lifetime)
        self._files = FileStore(folder / "files" if folder is not None else None, limits)
        self._batches = BatchJobs(
            Endpoint(self._spec.url),
            self._spec.served_model_name,
            folder,
            connect=lambda _: InProcessClient(self._rows, self._client),
            allowed=AllowedUris(self._spec.allowed_uris),
            store=self._files,
            storage=read_storage_options(self._spec.storage_options_file),
            counters=self._counters,
            on_rows=LeaseExtension(self._spec.lease_file).renew_when_due,
        )
        token = read_secret(self._spec.batch_token_file, "batch token")
        access = ClientAccess(
            Secret(token) if token is not None else None,
            keyed=self._key is not None,
            host=self._spec.host,
            url=self._spec.url,
        )
        self._batch_routes = BatchRoutes(self._batches, access)
        self._file_routes = FileRoutes(self._files, self._batches, access)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] == "lifespan":
            if "app" in scope:
                self._scope["app"] = scope["app"]
            await self._app(scope, receive, self._watch_lifespan(send))
        elif scope["type"] == "http":
            await self._http(scope, receive, send, self._dispatch)
        else:
            await self._websocket(scope, receive, send)

    # -- requests --------------------------------------------------------------------------------------

    async def _http(self, scope: Scope, receive: Receive, send: Send, answer: App) -> None:
        """Let ``answer`` answer a request, within the limits on its body."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        longest = self._file_routes.longest_body if is_file_path(scope["path"]) else MAX_BODY_BYTES
        try:
            check_length(scope, longest)
            await answer(scope, limited(receive, longest), watched)
        except RequestRefused as error:
            if not started:
                await self._refuse(scope, send, error.status, str(error))
        except ClientLeft:
            return

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == HEALTH_PATH and (problem := self._problem()):
            await refuse(send, 503, problem)
        elif path == METRICS_PATH:
            await add_metrics(self._client, send, await asyncio.to_thread(self._metrics))
        elif path in OPEN_PATHS:
            await self._app(scope, receive, send)
        elif path == STATUS_PATH:
            await self._fastchat.handle(scope, receive, send)
        elif not self._is_authorized(scope):
            await self._refuse(scope, send, 401, _NO_KEY)
        else:
            await self._answer_unless_draining(scope, receive, send)

    async def _serve_gateway(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application of FastChat's own port: its protocol without the key, and nothing else."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": "HTTP only."})
        elif scope["path"] in self._fastchat:
            await self._http(scope, receive, send, self._answer_unless_draining)
        else:
            await refuse(send, 404, "This port serves FastChat's protocol alone.")

    async def _answer_unless_draining(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == STATUS_PATH:
            await self._fastchat.handle(scope, receive, send)
        elif self._status is WorkerStatus.DRAINING:
            await self._refuse(scope, send, 503, _DRAINING)
        else:
            with self._counted():
                await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if is_batch_path(path):
            await self._batch_routes.handle(scope, receive, send)
        elif is_file_path(path):
            await self._file_routes.handle(scope, receive, send)
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
        self._requests += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def _worker_status(self) -> dict[str, Any]:
        """FastChat's ``worker_status``, with no model names unless it is ready; and what else we tell.

        The lease watcher renews a pod's lease by its batch's progress, which only this tells without a key.
        """
        ready = self._status is WorkerStatus.READY
        return {
            "model_names": [self._spec.served_model_name] if ready else [],
            "speed": 1,
            "queue_length": self.running,
            "status": self._status.value,
            "cause": self._cause,
            "seconds_since_batch_progress": self._batches.seconds_since_progress,
        }

    def _metrics(self) -> WorkerMetrics:
        return WorkerMetrics.of(
            self._spec,
            self._status,
            self._cause,
            running=self._batches.number_running,
            ready_seconds=self._ready_seconds,
            lease_expires_at=lease_expires_at(self._spec.lease_file),
            batches=self._counters,
        )

    def _problem(self) -> str | None:
        """Why the worker is not healthy; a draining one is."""
        return None if self._status in {WorkerStatus.READY, WorkerStatus.DRAINING} else self._cause

    @property
    def running(self) -> int:
        """Requests and rows that wait for the engine."""
        return self._in_flight + self._rows.rows

    @property
    def requests(self) -> int:
        """Requests so far."""
        return self._requests

    @property
    def busy(self) -> bool:
        """Whether a batch runs in the worker."""
        return self._batches.running

    def _describe(self) -> dict[str, Any]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            self._spec.model, trust_remote_code=self._spec.trust_remote_code
        )
        described = describe(tokenizer, self._spec.model)
        if described.caveat:
            say(f"chats through FastChat's gateway: {described.caveat}")
        return described.conversation

    # -- start and end of the server -------------------------------------------------------------------

    def _watch_lifespan(self, send: Send) -> Send:
        async def watched(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                loop = asyncio.get_running_loop()
                loop.add_signal_handler(signal.SIGUSR1, self._start_draining)
                header_timeout.register()
                refuse_redirects_to_other_hosts()
                give_way(self._spec.num_gpus)
                self._start(self._open())
                if self._spec.fastchat_port is not None:
                    gateway = GatewayServer(self._serve_gateway, self._spec.host, self._spec.fastchat_port)
                    self._start(gateway.serve())
            await send(message)

        return watched

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a background task; one that fails ends the worker with its cause."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._end_on_failure)
        self._tasks.append(task)
        return task

    def _end_on_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            lines = "".join(traceback.format_exception(error)).rstrip()
            say(f"a background task of the worker failed\n{lines}")
            self._fail(f"{type(error).__name__}: {error}")

    def _fail(self, cause: str) -> None:
        """End the server because the worker cannot go on."""
        if self._status is not WorkerStatus.FAILED:
            self._status, self._cause = WorkerStatus.FAILED, cause
            say(f"the worker fails: {cause}")
            os.kill(os.getpid(), signal.SIGTERM)

    async def _open(self) -> None:
        """Become ready, and known to the controller, once the model generated; then watch its engine."""
        while not await self._listens():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(_POLL_S)
        self._cause = "the first generation has not ended"
        await wait_for_first_generation(self._client, self._spec.served_model_name, self._note)
        if self._spec.controller_address:
            self._registration = Registration(
                self._spec.controller_address, self._spec.fastchat_url, self._worker_status
            )
        self._become_ready()
        self._batches.resume()
        self._start(self._remove_expired_files())
        monitor = EngineMonitor(
            self._client,
            self,
            Limits(self._spec.hang_timeout, self._spec.hang_restart_timeout, self._spec.idle_timeout),
            probe=lambda: first_generation(self._client, self._spec.served_model_name),
            lease_file=self._spec.lease_file,
            on_change=self._engine_changed,
            on_end=self._ask_to_end,
        )
        await monitor.run()

    async def _remove_expired_files(self) -> None:
        while True:
            await asyncio.to_thread(self._files.remove_expired)
            await asyncio.sleep(_EXPIRY_POLL_S)

    def _note(self, problem: str) -> None:
        self._cause = problem
        say(problem)

    def _become_ready(self) -> None:
        self._status, self._cause = WorkerStatus.READY, ""
        if self._ready_seconds is None:
            self._ready_seconds = time.monotonic() - self._started_at
        say(f"ready: {self._spec.served_model_name} at {self._spec.url}")
        if self._registration is not None:
            report_registered(True)
            self._keeping = self._start(self._registration.keep())

    async def _engine_changed(self, cause: str | None) -> None:
        if cause is None:
            say("the engine generates again")
            self._become_ready()
            return
        self._status = WorkerStatus.HUNG
        self._note(cause)
        await self._leave_controller()

    async def _leave_controller(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
        if self._registration is not None:
            await self._registration.leave()
            report_registered(False)

    def _ask_to_end(self, reason: str, hung: bool) -> None:
        if not ask_to_end(reason, hung=hung):
            self._fail(reason)

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
        await self._leave_controller()
        await self._batches.stop()
        deadline = asyncio.get_running_loop().time() + self._spec.drain_seconds
        while self._in_flight and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)
