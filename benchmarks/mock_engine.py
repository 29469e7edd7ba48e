"""An engine that answers at once: what is left is the client's own time.

``python -m benchmarks.mock_engine [--delay SECONDS] [--answers N]`` prints its URL and serves until it is
ended. Beside what the batch engine asks for, ``GET /first_post`` tells when the first row came, in seconds of
the machine's monotonic clock.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
from typing import cast

import uvloop

_MODELS = b'{"object":"list","data":[{"id":"mock","object":"model"}]}'
_CHOICE = b'{"index":0,"message":{"role":"assistant","content":"%b"},"finish_reason":"stop","logprobs":null}'
_ANSWER = (
    b'{"id":"chatcmpl-%d","object":"chat.completion","created":1700000000,"model":"mock","choices":[%b],'
    b'"usage":{"prompt_tokens":24,"total_tokens":56,"completion_tokens":32}}'
)
_TEXT = b"The answer to this row has some thirty-two tokens, which is what the bench rows ask for. " * 2
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class MockEngine(asyncio.Protocol):
    """One connection. Only what the batch engine sends is understood: whole requests, one at a time."""

    delay = 0.0
    answers: int | None = None
    number = 0
    first_post = 0.0

    def __init__(self) -> None:
        self._data = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._data, 0, end)
        if len(self._data) < end + 4 + (int(length[1]) if length else 0):
            return
        is_post = self._data.startswith(b"POST")
        path = bytes(self._data[: self._data.index(b"\r")]).split(b" ")[1]
        self._data.clear()
        if not is_post:
            self._answer(_look(path))
            return
        MockEngine.first_post = MockEngine.first_post or time.monotonic()
        if self.number == self.answers:
            return
        if self.delay:
            asyncio.get_running_loop().call_later(self.delay, self._answer, _completion())
        else:
            self._answer(_completion())

    def _answer(self, body: bytes) -> None:
        if self._transport is not None:
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (len(body), body)
            )


def _completion() -> bytes:
    MockEngine.number += 1
    return _ANSWER % (MockEngine.number, _CHOICE % _TEXT)


def _look(path: bytes) -> bytes:
    """The answer to ``GET``."""
    return b"%f" % MockEngine.first_post if path == b"/first_post" else _MODELS


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(MockEngine, "127.0.0.1", 0, backlog=2048)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--answers", type=int, metavar="N", help="leave every row after these unanswered")
    options = parser.parse_args()
    MockEngine.delay, MockEngine.answers = options.delay, options.answers
    uvloop.run(_serve())
    sys.exit(0)
