"""A FastAPI application like vLLM's: endpoints of a request model and the raw request, in its decorators."""

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from airflow_arcadia.batch.openai_format import CHAT, COMPLETIONS


class ChatRequest(BaseModel):
    """A row's body."""

    prompt: str
    wait: bool = False
    fail: bool = False


class CompletionRequest(BaseModel):
    """A prompt, answered in capitals; one that begins with "wait" waits for ``go``."""

    prompt: str
    stream: bool = False

    @property
    def waits(self) -> bool:
        return self.prompt.startswith("wait")

    def answer(self) -> dict[str, Any]:
        choice = {"index": 0, "text": self.prompt.upper(), "finish_reason": "stop"}
        return {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}


def with_cancellation(handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Ends the handler when the client goes away, as vLLM's of this name does."""

    @functools.wraps(handler)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        raw = kwargs["raw_request"]
        work = asyncio.create_task(handler(*args, **kwargs))
        gone = asyncio.create_task(disconnect(raw))
        done, pending = await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return work.result() if work in done else None

    return wrapper


def watched(handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A decorator that vLLM does not have."""

    @functools.wraps(handler)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await handler(*args, **kwargs)

    return wrapper


async def disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Served:
    """What a test holds of the application."""

    def __init__(self, decorate: Callable[..., Any] = with_cancellation) -> None:
        self.app = FastAPI()
        self.through_middleware = 0
        self.begun = self.finished = self.running = 0
        """Generations of chats."""
        self.go = asyncio.Event()

        @self.app.middleware("http")
        async def count(request: Request, forward: Callable[[Request], Awaitable[Any]]) -> Any:
            self.through_middleware += 1
            return await forward(request)

        @self.app.exception_handler(ValueError)
        async def refuse(request: Request, error: ValueError) -> JSONResponse:
            return JSONResponse({"error": {"message": str(error)}}, 400, {"Retry-After": "3"})

        @self.app.post(CHAT)
        @decorate
        async def chat(request: ChatRequest, raw_request: Request):
            return await self._answer(request, raw_request)

        @self.app.get("/v1/models")
        async def models():
            return {"data": [{"id": "tiny"}]}

        @self.app.post(COMPLETIONS)
        @decorate
        async def complete(request: CompletionRequest, raw_request: Request, odd: bool = True):
            if request.stream:
                return StreamingResponse(self._stream(request), media_type="text/event-stream")
            answer = await self._answer(ChatRequest(prompt=request.prompt, wait=request.waits), raw_request)
            return answer if answer.status_code != 200 else JSONResponse(request.answer())

    async def _answer(self, request: ChatRequest, raw_request: Request) -> JSONResponse:
        assert raw_request.app is self.app
        raw_request.state.seen = True
        if request.fail:
            raise ValueError("it cannot be rendered")
        self.begun += 1
        self.running += 1
        try:
            if request.wait:
                await self.go.wait()
        except asyncio.CancelledError:
            # As vLLM's serving code does.
            return JSONResponse({"error": {"message": "Client disconnected"}}, 400)
        finally:
            self.running -= 1
        self.finished += 1
        text = request.prompt.upper()
        return JSONResponse({"text": text, "choices": [{"index": 0, "text": text, "finish_reason": "stop"}]})

    async def _stream(self, request: CompletionRequest) -> AsyncIterator[bytes]:
        """One event at once, the other after ``go``; vLLM's generators end when they are cancelled."""
        self.begun += 1
        self.running += 1
        try:
            yield f"data: {json.dumps(request.answer())}\n\n".encode()
            if request.waits:
                await self.go.wait()
            yield b"data: [DONE]\n\n"
            self.finished += 1
        finally:
            self.running -= 1

    @property
    def scope(self) -> dict[str, Any]:
        """What the scopes of its requests have in common."""
        return {"asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "app": self.app}
