"""The seam to vLLM's server: one ASGI middleware that adds FastChat, the API key, and leaving in order.

vLLM's ``--middleware`` takes a class path and calls the class with the inner application. The class sees the
lifespan events too, so that registering and draining live in the server's own process.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from airflow_arcadia.batch import Endpoint
from airflow_arcadia.batch.transport import bundles
from airflow_arcadia.runtime import batch_routes, bundle_route
from airflow_arcadia.runtime.asgi import App, Receive, Scope, Send, call, header, read_json, respond, stream
from airflow_arcadia.runtime.batch_jobs import BatchJobs
from airflow_arcadia.runtime.batch_routes import is_batch_path
from airflow_arcadia.runtime.cpu_budget import give_way
from airflow_arcadia.runtime.endpoint_caller import Desk
from airflow_arcadia.runtime.fastchat import protocol
from airflow_arcadia.runtime.fastchat.conversation import describe
from airflow_arcadia.runtime.fastchat.registration import Registration
from airflow_arcadia.runtime.in_process_client import InProcessClient
from airflow_arcadia.runtime.log import say
from airflow_arcadia.runtime.vllm_patches import env_cache
from airflow_arcadia.worker import WorkerSpec, WorkerStatus

_OPEN = frozenset({"/health", "/ping", "/version", "/metrics", "/load", "/worker_get_status"})
"""Paths that need no key: probes and metrics, and the one call FastChat's controller makes, which cannot
authenticate; it tells model names and a queue length."""
_POLL_S = 0.1

Handler = Callable[[Scope, Any, Send], Awaitable[None]]


class ArcadiaMiddleware:
    """See the module. Configured by the worker's environment (``WorkerSpec.from_env``)."""

    def __init__(self, app: App, spec: WorkerSpec | None = None) -> None:
        self._app = app
        self._spec = spec or WorkerSpec.from_env(os.environ)
        key_file = self._spec.api_key_file
        self._key = Path(key_file).read_text(encoding="utf-8").strip() if key_file else None
        self._status = WorkerStatus.STARTING
        self._in_flight = 0
        self._scope: Scope = {"asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http"}
        self._conversation: dict[str, Any] | None = None
        self._registration: Registration | None = None
        self._tasks: list[asyncio.Task[None]] = []
        folder = Path(self._spec.lease_file).parent if self._spec.lease_file else None
        self._desk = Desk(app, self._scope)
        self._batches = BatchJobs(
            Endpoint(self._spec.url),
            self._spec.served_model_name,
            folder,
            connect=lambda _: InProcessClient(self._desk),
        )
        self._handlers: dict[str, Handler] = {
            "/worker_generate": self._generate,
            "/worker_generate_stream": self._generate_stream,
            "/worker_get_status": self._get_status,
            "/worker_get_conv_template": self._get_conv_template,
            "/worker_get_embeddings": self._get_embeddings,
            "/count_token": self._count_token,
            "/model_details": self._model_details,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] == "lifespan":
            if "app" in scope:
                self._scope["app"] = scope["app"]
            await self._app(scope, receive, self._watch_lifespan(send))
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        handler = self._handlers.get(path)
        if not self._allowed(scope, path):
            message = "A valid API key is needed: send it as Authorization: Bearer."
            await self._refuse(send, 401, message, fastchat_shape=handler is not None)
            return
        if self._status is WorkerStatus.DRAINING and path not in _OPEN:
            message = "This worker is draining and takes no new requests."
            await self._refuse(send, 503, message, fastchat_shape=handler is not None)
            return
        counted = path not in _OPEN
        self._in_flight += counted
        try:
            if is_batch_path(path):
                await batch_routes.handle(self._batches, scope, receive, send)
            elif path == bundles.PATH:
                await bundle_route.handle(self._desk, scope, receive, send)
            elif handler is None:
                await self._app(scope, receive, send)
            else:
                await self._fastchat(handler, scope, receive, send)
        finally:
            self._in_flight -= counted

    async def _fastchat(self, handler: Handler, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            params = await read_json(receive)
            if isinstance(params, dict):
                await handler(scope, params, send)
            else:
                await respond(send, 200, {"text": "not a JSON object", "error_code": protocol.VALIDATION})
        except (ValueError, TypeError) as error:
            await respond(send, 200, {"text": str(error), "error_code": protocol.VALIDATION})

    # -- FastChat's calls ------------------------------------------------------------------------------

    async def _generate(self, scope: Scope, params: Any, send: Send) -> None:
        body = protocol.completion_request(params, self._spec.served_model_name, stream=False)
        answer = await call(self._app, scope, "POST", "/v1/completions", body)
        if answer.status == 200:
            await respond(send, 200, protocol.generate_answer(params, answer.json()))
        else:
            await respond(send, 200, protocol.error_answer(answer.status, answer.json()))

    async def _generate_stream(self, scope: Scope, params: Any, send: Send) -> None:
        body = protocol.completion_request(params, self._spec.served_model_name, stream=True)
        translator = protocol.StreamTranslator(params)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        rest = b""
        async for status, chunk in stream(self._app, scope, "POST", "/v1/completions", body):
            rest += chunk
            if status != 200:
                continue
            *events, rest = rest.split(b"\n\n")
            for event in events:
                data = event.removeprefix(b"data: ")
                if data and data != b"[DONE]":
                    await self._send_chunk(send, translator, json.loads(data))
        if rest.strip():
            with suppress(ValueError):
                await _send_part(send, protocol.error_answer(status, json.loads(rest)))
        await send({"type": "http.response.body", "body": b""})

    @staticmethod
    async def _send_chunk(send: Send, translator: protocol.StreamTranslator, data: Any) -> None:
        if "error" in data:
            await _send_part(send, protocol.error_answer(int(data["error"].get("code") or 500), data))
        else:
            await _send_part(send, translator.feed(data))

    async def _get_status(self, scope: Scope, params: Any, send: Send) -> None:
        await respond(send, 200, await self._worker_status())

    async def _get_conv_template(self, scope: Scope, params: Any, send: Send) -> None:
        if self._conversation is None:
            self._conversation = await asyncio.to_thread(self._describe)
        await respond(send, 200, {"conv": self._conversation})

    async def _get_embeddings(self, scope: Scope, params: Any, send: Send) -> None:
        body = {"model": self._spec.served_model_name, "input": params.get("input")}
        if params.get("encoding_format"):
            body["encoding_format"] = params["encoding_format"]
        answer = await call(self._app, scope, "POST", "/v1/embeddings", body)
        if answer.status == 200:
            await respond(send, 200, protocol.embeddings_answer(answer.json()))
        else:
            await respond(send, 200, protocol.error_answer(answer.status, answer.json()))

    async def _count_token(self, scope: Scope, params: Any, send: Send) -> None:
        body = {"model": self._spec.served_model_name, "prompt": params.get("prompt")}
        answer = await call(self._app, scope, "POST", "/tokenize", body)
        if answer.status == 200:
            await respond(send, 200, {"count": answer.json()["count"], "error_code": 0})
        else:
            await respond(send, 200, {"count": 0, **protocol.error_answer(answer.status, answer.json())})

    async def _model_details(self, scope: Scope, params: Any, send: Send) -> None:
        answer = await call(self._app, scope, "GET", "/v1/models")
        await respond(send, 200, {"context_length": answer.json()["data"][0]["max_model_len"]})

    async def _worker_status(self) -> dict[str, Any]:
        """FastChat's ``worker_status``; no model names before the model is served or while draining."""
        ready = self._status is WorkerStatus.READY
        return {
            "model_names": [self._spec.served_model_name] if ready else [],
            "speed": 1,
            "queue_length": self._in_flight + self._desk.rows,
        }

    def _describe(self) -> dict[str, Any]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            self._spec.model, trust_remote_code=self._spec.trust_remote_code
        )
        return describe(tokenizer)

    # -- coming and going ------------------------------------------------------------------------------

    def _watch_lifespan(self, send: Send) -> Send:
        async def watched(message: Any) -> None:
            if message["type"] == "lifespan.startup.complete":
                loop = asyncio.get_running_loop()
                loop.add_signal_handler(signal.SIGUSR1, self._start_draining)
                env_cache.register()
                give_way(self._spec.num_gpus)
                self._tasks.append(asyncio.create_task(self._open()))
            await send(message)

        return watched

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
        answer = await call(self._app, self._scope, "POST", "/v1/completions", body)
        if answer.status not in {200, 404}:  # an embedding model has no completions
            say(f"the first generation failed with HTTP {answer.status}: {answer.body[:500]!r}")

    async def _listens(self) -> bool:
        host = "127.0.0.1" if self._spec.host in {"0.0.0.0", "::"} else self._spec.host  # noqa: S104
        try:
            _, writer = await asyncio.open_connection(host, self._spec.port)
        except OSError:
            return False
        writer.close()
        return True

    def _start_draining(self) -> None:
        if self._status is not WorkerStatus.DRAINING:
            self._status = WorkerStatus.DRAINING
            self._tasks.append(asyncio.create_task(self._drain()))

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

    # -- the door --------------------------------------------------------------------------------------

    def _allowed(self, scope: Scope, path: str) -> bool:
        if self._key is None or path in _OPEN:
            return True
        kind, _, sent = header(scope, b"authorization").partition(" ")
        return kind.lower() == "bearer" and secrets.compare_digest(sent.strip(), self._key)

    @staticmethod
    async def _refuse(send: Send, status: int, message: str, *, fastchat_shape: bool) -> None:
        if fastchat_shape:
            body = {"text": message, "error_code": protocol.error_code(status, message)}
            await respond(send, status, body)
        else:
            kind = "invalid_api_key" if status == 401 else "service_unavailable"
            await respond(send, status, {"error": {"message": message, "type": kind, "code": status}})


async def _send_part(send: Send, answer: dict[str, Any]) -> None:
    body = json.dumps(answer).encode() + b"\0"
    await send({"type": "http.response.body", "body": body, "more_body": True})
