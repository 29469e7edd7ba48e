"""A server that speaks vLLM's OpenAI API, answers from the prompt alone, and fails on demand."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from aiohttp import web

from airflow_arcadia.batch.transport import bundles
from airflow_arcadia.batch.transport.http_client import Response

CONTEXT = 64
"""Words a prompt may have."""


class FakeEngine:
    """What the tests hold while the server runs. ``seen`` counts rows by prompt, ``probes`` the others."""

    def __init__(self, model: str = "tiny", api_key: str | None = None) -> None:
        self.probed: Counter[str] = Counter()
        self.models = [model]
        self.adapters: set[str] = set()
        """Those of its models that are adapters of the first."""
        self.api_key = api_key
        self.seen: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.failing: dict[str, list[int]] = {}
        """Prompt → statuses of its next answers; 0 closes the connection without one."""
        self.refusing = 0
        """Status of every answer to a row or a probe, while it is not 0."""
        self.retry_after: str | None = None
        self.answering: dict[str, Any] = {}
        """Prompt → what it is answered with HTTP 200."""
        self.frozen = False
        """While set, nothing is answered at all."""
        self.poison: set[str] = set()
        """Prompts that kill the engine: it is back after ``restart_s``."""
        self.restart_s = 0.05
        self.deaths = 0
        self._restarts: set[asyncio.Task[None]] = set()
        self.held: asyncio.Event | None = None
        """While set and not fired, no row is answered."""
        self.delays: dict[str, asyncio.Event] = {}
        """Prompt → what it waits for."""
        self.delay = 0.0
        self.row_limit: int | None = None
        """Rows seen beyond so many are not answered."""
        self.takes_bundles = False
        self.bundles: list[int] = []
        """Rows in each bundle so far."""
        self.running = 0
        self.most_running = 0
        self.tokens = 0
        self._numbers = itertools.count()
        self.url = ""
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def restarting(self) -> bool:
        return bool(self._restarts)

    @property
    def probes(self) -> int:
        return self.probed.total()

    async def start(self) -> None:
        app = web.Application(client_max_size=2**26, middlewares=[self._freeze])
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_get("/metrics", self._metrics)
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            app.router.add_post(path, self._answer)
        app.router.add_route("*", bundles.PATH, self._answer_bundle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.0, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        """Die: connections are cut, answers in the making are lost. :meth:`start` comes back on the port."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            if self.held is not None:
                self.held.set()
            for connection in list(runner.server.connections if runner.server else ()):
                if connection.transport is not None:
                    connection.transport.abort()
            await runner.cleanup()
            self.running = 0

    def die(self) -> None:
        """Stop, and start again a moment later."""

        async def restart() -> None:
            await self.stop()
            await asyncio.sleep(self.restart_s)
            if self._runner is None:
                await self.start()

        if self._restarts:
            return
        self.deaths += 1
        task = asyncio.get_running_loop().create_task(restart())
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    @web.middleware
    async def _freeze(self, request: web.Request, handler: Any) -> web.StreamResponse:
        while self.frozen:  # noqa: ASYNC110 - set by tests at any time
            await asyncio.sleep(0.02)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _list_models(self, request: web.Request) -> web.Response:
        if denied := self._denied(request):
            return denied
        parents = {name: self.models[0] if name in self.adapters else None for name in self.models}
        listed = [{"id": name, "parent": parent} for name, parent in parents.items()]
        return web.json_response({"object": "list", "data": listed})

    async def _metrics(self, request: web.Request) -> web.Response:
        lines = [
            f'vllm:num_requests_running{{engine="0"}} {self.running}.0',
            f'vllm:generation_tokens_total{{engine="0"}} {self.tokens}.0',
            f'vllm:prompt_tokens_total{{engine="0"}} {self.tokens}.0',
        ]
        return web.Response(text="\n".join(lines) + "\n")

    def _denied(self, request: web.Request) -> web.Response | None:
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return None

    async def _answer(self, request: web.Request) -> web.Response:
        if denied := self._denied(request):
            return denied
        body = await request.json()
        self.bodies.append(body)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._generate(request, body)
        finally:
            self.running -= 1

    async def _answer_bundle(self, request: web.Request) -> web.StreamResponse:
        if denied := self._denied(request):
            return denied
        if not self.takes_bundles:
            return _error(404, "Not Found")
        answer = web.StreamResponse()
        if request.method == "GET":
            return web.json_response({"path": bundles.PATH})
        rows = bundles.unpack(await request.read())
        self.bundles.append(len(rows))
        await answer.prepare(request)

        async def one(number: int, url: str, raw: bytes) -> None:
            part = SimpleNamespace(path=url, transport=request.transport)
            body = json.loads(raw)
            self.bodies.append(body)
            whole = await self._generate(part, body)
            after = whole.headers.get("Retry-After")
            line = Response(whole.status, (whole.text or "").encode(), after)
            await answer.write(bundles.pack_answer(number, line))

        tasks = [asyncio.create_task(one(number, *row)) for number, row in enumerate(rows)]
        self.running += len(rows)
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.gather(*tasks)
        finally:
            self.running -= len(rows)
            for task in tasks:
                task.cancel()
        await answer.write_eof()
        return answer

    async def _generate(self, request: Any, body: dict[str, Any]) -> web.Response:
        text = _text(body)
        (self.probed if is_probe(body) else self.seen)[text] += 1
        if self.refusing:
            return _error(self.refusing, "it refuses everything", self.retry_after)
        if self.row_limit is not None and self.seen.total() > self.row_limit and not is_probe(body):
            await asyncio.Event().wait()  # until its connection is closed
        if self.held is not None:
            await self.held.wait()
        if text in self.delays:
            await self.delays[text].wait()
        if self.delay:
            await asyncio.sleep(self.delay)
        if text in self.poison:
            self.die()
            await asyncio.sleep(60)
        if text in self.answering:
            return web.json_response(self.answering[text])
        if statuses := self.failing.get(text):
            status = statuses.pop(0)
            if status == 0 and request.transport is not None:
                request.transport.abort()
            if status != 200:
                return _error(status or 500, "it fails on demand")
        if body["model"] not in self.models:
            return _error(404, f"The model `{body['model']}` does not exist.")
        words = len(text.split())
        if words > CONTEXT:
            return _error(400, f"This model's maximum context length is {CONTEXT} tokens, not {words}.")
        self.tokens += 3
        return web.json_response(self._body(request.path, body, text, words))

    def _body(self, path: str, body: dict[str, Any], text: str, words: int) -> dict[str, Any]:
        answer = text.upper()
        usage = {"prompt_tokens": words, "completion_tokens": 3, "total_tokens": words + 3}
        common = {"id": f"cmpl-{next(self._numbers)}", "created": int(time.time()), "model": body["model"]}
        if path == "/v1/embeddings":
            vector = [float(len(text)), 1.0]
            return {**common, "object": "list", "data": [{"index": 0, "embedding": vector}], "usage": usage}
        if path == "/v1/chat/completions":
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": answer},
                "finish_reason": "stop",
            }
            return {**common, "object": "chat.completion", "choices": [choice], "usage": usage}
        nothing = {"token_ids": None, "prompt_token_ids": None}
        choice = {"index": 0, "text": answer, "finish_reason": "stop", **nothing}
        return {**common, "object": "text_completion", "choices": [choice], "usage": usage}


@asynccontextmanager
async def serving(engine: FakeEngine | None = None) -> AsyncIterator[FakeEngine]:
    """A running engine."""
    engine = engine or FakeEngine()
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def _text(body: dict[str, Any]) -> str:
    if "messages" in body:
        return "\n".join(str(message.get("content")) for message in body["messages"])
    return str(body.get("prompt", body.get("input")))


def is_probe(body: dict[str, Any]) -> bool:
    """Whether it is the batch engine's own request for one token."""
    return _text(body) == "1"


def _error(status: int, message: str, retry_after: str | None = None) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": "BadRequestError", "code": status}},
        status=status,
        headers={"Retry-After": retry_after} if retry_after else None,
    )
