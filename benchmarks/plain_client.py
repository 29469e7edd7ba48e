"""A client as one writes it in an afternoon: aiohttp, a fixed number of requests in flight, no output."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp
import orjson


def send_all(rows: Path, url: str, in_flight: int) -> float:
    """Seconds until every row of OpenAI's batch format is answered by the server at ``url``."""
    lines = iter(rows.read_bytes().splitlines())

    async def send() -> float:
        connector = aiohttp.TCPConnector(limit=0)
        headers = {"Content-Type": "application/json"}
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

            async def send_some() -> None:
                for line in lines:
                    row = orjson.loads(line)
                    async with session.post(url + row["url"], data=orjson.dumps(row["body"])) as answer:
                        assert answer.status == 200
                        orjson.loads(await answer.read())

            began = time.monotonic()
            await asyncio.gather(*[send_some() for _ in range(in_flight)])
            return time.monotonic() - began

    return asyncio.run(send())
