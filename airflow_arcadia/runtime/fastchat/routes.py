"""FastChat's worker protocol over HTTP, answered by the OpenAI API of the same process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from airflow_arcadia.runtime.asgi import Receive, Scope, Send, read_json, respond, run_while_connected
from airflow_arcadia.runtime.asgi_client import AsgiClient
from airflow_arcadia.runtime.fastchat import protocol

STATUS_PATH = "/worker_get_status"
"""The one call of FastChat's controller, which cannot authenticate: model names and a queue length."""

Handler = Callable[[dict[str, Any], Send], Coroutine[Any, Any, None]]


class FastChatRoutes:
    """See the module.

    :param client: the application with the OpenAI API.
    :param model: name it serves.
    :param status: makes ``worker_status`` {model_names, speed, queue_length}.
    :param describe: makes ``conv``, the fields of FastChat's ``Conversation``; it may block.
    """

    def __init__(
        self,
        client: AsgiClient,
        model: str,
        status: Callable[[], dict[str, Any]],
        describe: Callable[[], dict[str, Any]],
    ) -> None:
        self._client, self._model = client, model
        self._status, self._describe = status, describe
        self._conversation: dict[str, Any] | None = None
        self._describing = asyncio.Lock()
        self._handlers: dict[str, Handler] = {
            "/worker_generate": self._generate,
            "/worker_generate_stream": self._generate_stream,
            "/worker_get_conv_template": self._get_conv_template,
            "/worker_get_embeddings": self._get_embeddings,
            "/count_token": self._count_token,
            "/model_details": self._model_details,
        }

    def __contains__(self, path: str) -> bool:
        return path == STATUS_PATH or path in self._handlers

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request of the protocol; generating ends when its client leaves."""
        if scope["path"] == STATUS_PATH:
            # Its body says nothing, so it is not read: whoever sends it needs no key.
            await respond(send, 200, self._status())
            return
        try:
            params = _json_object(await read_json(receive))
            await run_while_connected(receive, self._handlers[scope["path"]](params, send))
        except (ValueError, TypeError, OverflowError) as error:
            await respond(send, 200, {"text": str(error), "error_code": protocol.VALIDATION})

    async def _generate(self, params: dict[str, Any], send: Send) -> None:
        body = protocol.completion_request(params, self._model, stream=False)
        status, answer = await self._client.call_json("POST", "/v1/completions", body)
        if status == 200:
            await respond(send, 200, protocol.generate_answer(params, answer))
        else:
            await respond(send, 200, protocol.error_answer(status, answer))

    async def _generate_stream(self, params: dict[str, Any], send: Send) -> None:
        body = json.dumps(protocol.completion_request(params, self._model, stream=True)).encode()
        translator = protocol.StreamTranslator(params)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        rest = b""
        async with self._client.request("POST", "/v1/completions", body) as exchange:
            async for chunk in exchange.chunks():
                rest += chunk
                if exchange.status != 200:
                    continue
                *events, rest = rest.split(b"\n\n")
                for event in events:
                    data = event.removeprefix(b"data: ")
                    if data and data != b"[DONE]":
                        await _send_part(send, _translate(translator, json.loads(data)))
        if rest.strip():
            with suppress(ValueError):
                await _send_part(send, protocol.error_answer(exchange.status, json.loads(rest)))
        await send({"type": "http.response.body", "body": b""})

    async def _get_conv_template(self, params: dict[str, Any], send: Send) -> None:
        async with self._describing:
            if self._conversation is None:
                self._conversation = await asyncio.to_thread(self._describe)
        await respond(send, 200, {"conv": self._conversation})

    async def _get_embeddings(self, params: dict[str, Any], send: Send) -> None:
        body = {"model": self._model, "input": params.get("input")}
        if params.get("encoding_format"):
            body["encoding_format"] = params["encoding_format"]
        status, answer = await self._client.call_json("POST", "/v1/embeddings", body)
        if status == 200:
            await respond(send, 200, protocol.embeddings_answer(answer))
        else:
            await respond(send, 200, protocol.error_answer(status, answer))

    async def _count_token(self, params: dict[str, Any], send: Send) -> None:
        body = {"model": self._model, "prompt": params.get("prompt")}
        status, answer = await self._client.call_json("POST", "/tokenize", body)
        if status == 200:
            await respond(send, 200, {"count": answer["count"], "error_code": 0})
        else:
            await respond(send, 200, {"count": 0, **protocol.error_answer(status, answer)})

    async def _model_details(self, params: dict[str, Any], send: Send) -> None:
        status, answer = await self._client.call_json("GET", "/v1/models")
        if status == 200 and answer.get("data"):
            await respond(send, 200, {"context_length": answer["data"][0].get("max_model_len")})
        else:
            await respond(send, 200, protocol.error_answer(status, answer))


def _json_object(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise TypeError("the request is not a JSON object")
    return body


def _translate(translator: protocol.StreamTranslator, data: Any) -> dict[str, Any]:
    """FastChat's part for one event of a completion's stream."""
    if "error" in data:
        code = data["error"].get("code")
        return protocol.error_answer(code if isinstance(code, int) else 500, data)
    return translator.feed(data)


async def _send_part(send: Send, answer: dict[str, Any]) -> None:
    body = json.dumps(answer).encode() + b"\0"
    await send({"type": "http.response.body", "body": body, "more_body": True})
