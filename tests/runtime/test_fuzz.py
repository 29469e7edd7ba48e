"""Thousands of odd requests: none is a server error, none gets past the key, and the server stays healthy.

``ARCADIA_FUZZ_REQUESTS`` says how many; ``make test-fuzz`` sends 10,000.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from airflow_arcadia.batch import BatchSpec
from airflow_arcadia.batch.openai_format import CHAT
from airflow_arcadia.batch.transport.bundles import PATH as BUNDLE
from tests.runtime.serving import worker
from tests.runtime.test_batch_routes import run, write_rows

REQUESTS = int(os.environ.get("ARCADIA_FUZZ_REQUESTS", "400"))
CONCURRENT = 16
OPEN = 0
"""Stands for the one answer that needs no key."""
METHODS = ("POST", "POST", "POST", "GET", "PUT", "DELETE", "HEAD", "PATCH")
PATHS = (
    *("/v1/batches", "/v1/batches", "/v1/batches", "/v1/batches/", "/v1/batches/x", "/v1/batches/x/cancel"),
    *("/v1/batches/%2e%2e", "/v1/batches//", BUNDLE, "/worker_generate", "/worker_generate_stream"),
    *("/worker_get_status", "/count_token", "/model_details", "/worker_get_embeddings"),
    *("/v1/batches?limit=-1", "/v1/batches?after=x", "/v1/batches?limit=9999999999"),
    *(
        "/v1/files",
        "/v1/files",
        "/v1/files",
        "/v1/files/",
        "/v1/files/x",
        "/v1/files/x/content",
        "/v1/files//",
    ),
    *("/v1/files/%2e%2e/content", "/v1/files?limit=x&order=y&after=z&purpose=", "/v1/files?purpose=%00"),
)
FORM = "multipart/form-data; boundary=edge"
FORM_TYPES = (
    FORM,
    FORM,
    FORM,
    f"{FORM}x",
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "text/plain",
)
ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 1e308, 10**30, "", "x", "\ud800", "\x00", "a\nb", "../../etc/passwd", "é" * 9),
    *(
        [],
        {},
        [[]],
        {"a": {}},
        ["x"] * 50,
        "file:///etc/passwd",
        "http://127.0.0.1:1/x",
        "s3://b/x",
        "data:,",
    ),
    *("memory://x/a", "zip://a::/etc/passwd", "{{ 7 * 7 }}", "{{ x", "{% for a in b %}", "y" * 10_000),
)
HEADERS: tuple[dict[str, str], ...] = (
    *({}, {}, {}, {"Content-Type": "text/plain"}, {"Origin": "http://evil"}, {"Host": "evil"}, {"Host": ""}),
    *({"Authorization": "Bearer"}, {"Authorization": "Bearer \xff"}, {"Authorization": "Basic x"}),
    *({"Arcadia-Batch-Token": "x"}, {"Arcadia-Batch-Token": "\xfc"}, {"Content-Type": ""}),
)


def odd_body(chance: random.Random, valid: dict[str, Any]) -> bytes:
    """A valid request with some of its values replaced, at any depth; sometimes cut or garbled."""
    body = json.loads(json.dumps(valid))
    for _ in range(chance.randrange(4)):
        target = body
        while isinstance(target, dict) and target:
            key = chance.choice(list(target))
            if isinstance(target[key], dict) and chance.random() < 0.6:
                target = target[key]
                continue
            target[chance.choice([key, "new"])] = copy.deepcopy(chance.choice(ODD))
            break
    data = json.dumps(body).encode()
    if chance.random() < 0.1:
        data = data[: chance.randrange(len(data))]
    if chance.random() < 0.05:
        data = bytes(chance.randrange(256) for _ in range(200))
    if chance.random() < 0.03:
        data = b"[" * chance.choice([10, 1000, 50_000])
    return data


def odd_form(chance: random.Random) -> bytes:
    """An upload with some of its fields wrong, doubled or missing; sometimes cut or garbled."""
    fields = [("purpose", "batch"), ("file", '{"prompt": "a"}\n')]
    for _ in range(chance.randrange(3)):
        name = chance.choice(["purpose", "file", "expires_after[seconds]", "expires_after[anchor]", "é", ""])
        value = chance.choice(["batch", "", "created_at", "3600", "-1", "x" * 5000, "a\r\n--edge", "\x00"])
        fields.insert(chance.randrange(len(fields) + 1), (name, value))
    named = ['; filename="a"', "; filename=", '; filename="../../b"', "", "; filename*=UTF-8''%ff", '; x="']
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="{name}"'
        f"{chance.choice(named) if name == 'file' else ''}\r\n\r\n{value}\r\n"
        for name, value in fields
    ]
    data = "".join([*parts, "--edge--\r\n"]).encode()
    if chance.random() < 0.2:
        data = data[: chance.randrange(len(data))]
    if chance.random() < 0.1:
        where = chance.randrange(len(data) + 1)
        data = data[:where] + bytes(chance.randrange(256) for _ in range(20)) + data[where:]
    return data


@pytest.mark.timeout(900)
@pytest.mark.parametrize("keyed", [False, True])
async def test_no_odd_request_is_a_server_error_and_the_server_stays_healthy(tmp_path: Path, keyed: bool):
    (tmp_path / "data").mkdir()
    source = tmp_path / "data" / "in.jsonl"
    write_rows(source, 2)
    valid = {
        "input_file_id": str(source),
        "endpoint": CHAT,
        "completion_window": "24h",
        "output": str(source.with_name("fuzzed.jsonl")),
        "metadata": {"a": "b"},
        "parameters": {"max_tokens": 5, "stop": ["a"]},
        "options": {"limit": 1, "prompt_template": "{{ prompt }}", "overwrite": True},
        "prompt": "hello",
        "max_new_tokens": 3,
        "logprobs": 1,
    }
    (tmp_path / "key").write_text("schlüssel")
    key = {"api_key_file": str(tmp_path / "key")} if keyed else {}
    async with worker(allowed_uris=(str(source.parent),), **key) as (url, _):
        statuses = await send(url, lambda chance: odd_body(chance, valid), seed=keyed)
        assert not {status for status in statuses if status >= 500}
        if keyed:
            assert set(statuses) == {OPEN, 401}
        else:
            assert {200, 400, 403, 404, 405, 415} <= set(statuses)
            job = BatchSpec(str(source), str(source.with_name("last.jsonl")), "tiny")
            assert (await run(url, job))["status"] == "completed"


async def send(url: str, body: Callable[[random.Random], bytes], seed: int) -> list[int]:
    """Send the requests, and return their statuses."""
    chance = random.Random(seed)
    room = asyncio.Semaphore(CONCURRENT)
    timeout = aiohttp.ClientTimeout(total=30)

    async def one(session: aiohttp.ClientSession) -> int:
        async with room:
            headers = {"Content-Type": "application/json"} | chance.choice(HEADERS)
            path, method, data = chance.choice(PATHS), chance.choice(METHODS), body(chance)
            if path.startswith("/v1/files") and chance.random() < 0.7:
                data, headers["Content-Type"] = odd_form(chance), chance.choice(FORM_TYPES)
            async with session.request(method, url + path, data=data, headers=headers) as response:
                await response.read()
                is_open = path == "/worker_get_status" and response.status == 200
                return OPEN if is_open else response.status

    async with aiohttp.ClientSession(timeout=timeout) as session:
        return await asyncio.gather(*[one(session) for _ in range(REQUESTS)])
