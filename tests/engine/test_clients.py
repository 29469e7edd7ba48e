"""The clients that people have, unmodified, on a real engine: without an API key and with one.

FastChat's own scenarios run through the `openai` client, at the worker and at FastChat's API server; then
comes what each client is used for. docs/how-to/clients.md has the table.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import openai
import pytest
import requests
from pydantic import BaseModel

from tests.airflow_context import make_context
from tests.conftest import ROOT, wait_for
from tests.engine.serving import Served, behind_fastchat

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

KEY = "the-key"
MODEL = "tiny"
PROMPT = "def add(first, second):"
MESSAGES: list[Any] = [{"role": "user", "content": "Write a function."}]
LENGTH = 12
"""Tokens of an answer: the end token is ignored, so that the random model always makes as many."""
EXACTLY: dict[str, Any] = {"max_tokens": LENGTH, "temperature": 0, "extra_body": {"ignore_eos": True}}
AT_ONCE = 50


@pytest.fixture(scope="module", params=[None, KEY], ids=["without-key", "with-key"])
def running(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    worker_python: str,
    tiny_model: str,
) -> Iterator[tuple[Served, str]]:
    folder = tmp_path_factory.mktemp("clients")
    settings = {"api_key": request.param, "served_model_name": MODEL}
    with behind_fastchat(folder, worker_python, tiny_model, **settings) as both:
        yield both


@pytest.fixture(scope="module")
def worker(running: tuple[Served, str]) -> Served:
    return running[0]


@pytest.fixture(scope="module")
def connection(worker: Served) -> dict[str, str]:
    """What a client is given. A worker without a key takes any: clients insist on sending one."""
    return {"base_url": f"{worker.url}/v1", "api_key": worker.api_key or "any"}


@pytest.fixture(scope="module")
def client(connection: dict[str, str]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(**connection, max_retries=0, timeout=120) as made:
        yield made


@pytest.fixture(scope="module")
def gateway(running: tuple[Served, str]) -> Iterator[openai.OpenAI]:
    """The client at FastChat's API server, which reaches a worker with a key at its gateway's port."""
    with openai.OpenAI(base_url=f"{running[1]}/v1", api_key="any", max_retries=0, timeout=120) as made:
        yield made


@pytest.fixture(scope="module")
def completed(worker: Served) -> str:
    """What the engine makes of PROMPT, by plain HTTP."""
    return answer(worker, "/v1/completions", {"prompt": PROMPT})["text"]


@pytest.fixture(scope="module")
def chatted(worker: Served) -> str:
    """What the engine makes of MESSAGES, by plain HTTP."""
    return answer(worker, "/v1/chat/completions", {"messages": MESSAGES})["message"]["content"]


def answer(worker: Served, path: str, content: dict[str, Any]) -> Any:
    body = {"model": MODEL, "max_tokens": LENGTH, "temperature": 0, "ignore_eos": True, **content}
    response = worker.post(path, body)
    assert response.ok, response.text
    return response.json()["choices"][0]


def joined(pieces: Any) -> str:
    """The text of a stream that came in more than one piece."""
    texts = [piece for piece in pieces if piece]
    assert len(texts) > 1
    return "".join(texts)


# FastChat's scenarios, at the worker


def test_models_are_listed(client: openai.OpenAI):
    assert [model.id for model in client.models.list().data] == [MODEL]


def test_a_completion_has_the_engines_text(client: openai.OpenAI, completed: str):
    made = client.completions.create(model=MODEL, prompt=PROMPT, **EXACTLY)
    assert made.choices[0].text == completed
    assert made.usage is not None
    assert made.usage.completion_tokens == LENGTH


def test_a_streamed_completion_has_the_same_text(client: openai.OpenAI, completed: str):
    stream = client.completions.create(model=MODEL, prompt=PROMPT, stream=True, **EXACTLY)
    assert joined(part.choices[0].text for part in stream) == completed


def test_a_chat_has_the_engines_text(client: openai.OpenAI, chatted: str):
    made = client.chat.completions.create(model=MODEL, messages=MESSAGES, **EXACTLY)
    assert made.choices[0].message.content == chatted


def test_a_streamed_chat_has_the_same_text_and_its_usage(client: openai.OpenAI, chatted: str):
    stream = list(
        client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **EXACTLY
        )
    )
    assert joined(part.choices[0].delta.content for part in stream if part.choices) == chatted
    assert stream[-1].usage is not None
    assert stream[-1].usage.completion_tokens == LENGTH


def test_a_text_model_refuses_embeddings(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=MODEL, input="Hello")


def test_plain_http_gets_the_same_text_in_events(worker: Served, chatted: str):
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": LENGTH, "temperature": 0, "ignore_eos": True}
    response = worker.post("/v1/chat/completions", {**body, "stream": True}, stream=True)
    events = [line.removeprefix(b"data: ") for line in response.iter_lines() if line]
    assert events[-1] == b"[DONE]"
    parts = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    assert joined(part.get("content") for part in parts) == chatted


# FastChat's scenarios, at FastChat's API server. Its streams fail in itself on pydantic 2.


def test_fastchats_api_server_lists_the_worker(gateway: openai.OpenAI):
    assert [model.id for model in gateway.models.list().data] == [MODEL]


def test_fastchats_api_server_completes_with_the_workers_text(gateway: openai.OpenAI, worker: Served):
    made = gateway.completions.create(model=MODEL, prompt=PROMPT, max_tokens=LENGTH, temperature=0)
    assert made.choices[0].text == worker.complete(PROMPT, LENGTH)


def test_fastchats_api_server_gives_logprobs(gateway: openai.OpenAI):
    made = gateway.completions.create(model=MODEL, prompt=PROMPT, max_tokens=3, temperature=0, logprobs=1)
    assert made.choices[0].logprobs is not None


def test_fastchats_api_server_chats_with_the_workers_text(gateway: openai.OpenAI, worker: Served):
    made = gateway.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=LENGTH, temperature=0)
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": LENGTH, "temperature": 0}
    whole = worker.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    assert (made.choices[0].message.content or "").strip() == whole.strip()


def test_fastchats_api_server_refuses_embeddings_of_a_text_model(gateway: openai.OpenAI):
    with pytest.raises(openai.BadRequestError):
        gateway.embeddings.create(model=MODEL, input="Hello")


# openai


def test_openai_gets_logprobs_of_chats_and_completions(client: openai.OpenAI, completed: str):
    chat = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=2, **EXACTLY
    )
    assert chat.choices[0].logprobs is not None
    tokens = chat.choices[0].logprobs.content or []
    assert [len(token.top_logprobs) for token in tokens] == [2] * LENGTH
    assert all(token.logprob <= 0 for token in tokens)
    text = client.completions.create(model=MODEL, prompt=PROMPT, logprobs=2, **EXACTLY).choices[0]
    assert text.logprobs is not None
    assert len(text.logprobs.token_logprobs or []) == LENGTH
    assert text.text == completed


def test_openai_gets_n_answers_in_order_for_each_prompt(client: openai.OpenAI):
    sampled = {**EXACTLY, "temperature": 1.0}
    chat = client.chat.completions.create(model=MODEL, messages=MESSAGES, n=3, seed=1, **sampled)
    assert [choice.index for choice in chat.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in chat.choices}) == 3
    many = client.completions.create(model=MODEL, prompt=[PROMPT, "import os"], n=2, seed=1, **sampled)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]


def test_openai_stops_at_the_stop_text(client: openai.OpenAI, completed: str):
    stop = completed[len(completed) // 2 :][:2]
    made = client.completions.create(model=MODEL, prompt=PROMPT, stop=[stop], **EXACTLY)
    assert made.choices[0].text == completed.partition(stop)[0]
    assert made.choices[0].finish_reason == "stop"


def test_openai_raises_what_it_documents(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="another", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="context"):
        client.completions.create(model=MODEL, prompt=PROMPT * 500, max_tokens=1)


def length_of(number: int) -> int:
    """A length for each of many requests: an answer that went to another one would be noticed."""
    return 1 + number % 13


async def test_openai_gets_fifty_answers_at_once(connection: dict[str, str]):
    async with openai.AsyncOpenAI(**connection, max_retries=0, timeout=120) as client:

        async def one(number: int) -> int:
            made = await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": f"Number {number}"}],
                **{**EXACTLY, "max_tokens": length_of(number)},
            )
            assert made.usage is not None
            return made.usage.completion_tokens

        lengths = await asyncio.gather(*map(one, range(AT_ONCE)))
    assert lengths == [length_of(number) for number in range(AT_ONCE)]


def test_a_wrong_key_is_an_authentication_error_where_there_is_a_key(
    worker: Served, connection: dict[str, str], chatted: str
):
    with openai.OpenAI(**{**connection, "api_key": "wrong"}, max_retries=0) as stranger:
        if worker.api_key is None:
            made = stranger.chat.completions.create(model=MODEL, messages=MESSAGES, **EXACTLY)
            assert made.choices[0].message.content == chatted
            return
        for call in (
            stranger.models.list,
            lambda: stranger.chat.completions.create(model=MODEL, messages=MESSAGES),
            lambda: stranger.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True),
            lambda: stranger.completions.create(model=MODEL, prompt=PROMPT),
        ):
            with pytest.raises(openai.AuthenticationError):
                call()
    assert requests.get(f"{worker.url}/v1/models", timeout=10).status_code == 401


# litellm


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module; it would otherwise ask the network for prices while it is imported."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    monkeypatch.setenv("LITELLM_MODE", "PRODUCTION")
    import litellm

    return litellm


def litellm_words(connection: dict[str, str], provider: str = "openai") -> dict[str, Any]:
    return {
        "model": f"{provider}/{MODEL}",
        "api_base": connection["base_url"],
        "api_key": connection["api_key"],
        "num_retries": 0,
        **EXACTLY,
    }


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_litellm_chats_whole_and_streamed(
    litellm: Any, connection: dict[str, str], chatted: str, provider: str
):
    words = litellm_words(connection, provider)
    made = litellm.completion(messages=MESSAGES, **words)
    assert made.choices[0].message.content == chatted
    assert made.usage.completion_tokens == LENGTH
    stream = litellm.completion(messages=MESSAGES, stream=True, **words)
    assert joined(part.choices[0].delta.content for part in stream) == chatted


def test_litellm_completes_with_n_logprobs_and_stop(litellm: Any, connection: dict[str, str], completed: str):
    words = litellm_words(connection)
    text = litellm.text_completion(prompt=PROMPT, **{**words, "model": f"text-completion-openai/{MODEL}"})
    assert text.choices[0].text == completed
    chat = litellm.completion(
        messages=MESSAGES, n=2, logprobs=True, top_logprobs=1, **{**words, "temperature": 1.0}
    )
    assert [len(choice.logprobs.content) for choice in chat.choices] == [LENGTH] * 2
    whole = litellm.completion(messages=MESSAGES, **words).choices[0].message.content
    stop = whole[len(whole) // 2 :][:2]
    stopped = litellm.completion(messages=MESSAGES, stop=[stop], **words).choices[0]
    assert (stopped.message.content or "") == whole.partition(stop)[0]
    assert stopped.finish_reason == "stop"


async def test_litellm_gets_fifty_answers_at_once(litellm: Any, connection: dict[str, str]):
    words = litellm_words(connection)
    calls = [
        litellm.acompletion(messages=MESSAGES, **{**words, "max_tokens": length_of(number)})
        for number in range(AT_ONCE)
    ]
    made = await asyncio.gather(*calls)
    assert [one.usage.completion_tokens for one in made] == [length_of(number) for number in range(AT_ONCE)]


def test_litellm_names_a_wrong_key_where_there_is_a_key(
    litellm: Any, worker: Served, connection: dict[str, str], chatted: str
):
    words = litellm_words({**connection, "api_key": "wrong"})
    if worker.api_key is None:
        assert litellm.completion(messages=MESSAGES, **words).choices[0].message.content == chatted
        return
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(messages=MESSAGES, **words)


# langchain-openai


def chain(connection: dict[str, str], **more: Any) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model=MODEL, max_retries=0, **connection, **{**EXACTLY, **more})


def test_langchain_chats_whole_and_streamed(connection: dict[str, str], chatted: str):
    made = chain(connection).invoke("Write a function.")
    assert made.content == chatted
    assert made.usage_metadata["output_tokens"] == LENGTH
    assert joined(part.content for part in chain(connection).stream("Write a function.")) == chatted


def test_langchain_completes(connection: dict[str, str], completed: str):
    from langchain_openai import OpenAI

    model = OpenAI(model=MODEL, max_retries=0, **connection, **EXACTLY)
    assert model.invoke(PROMPT) == completed
    assert joined(model.stream(PROMPT)) == completed


def test_langchain_gets_logprobs_n_and_stop(connection: dict[str, str], chatted: str):
    from langchain_core.messages import HumanMessage

    made = chain(connection, logprobs=True, top_logprobs=1).invoke("Write a function.")
    assert len(made.response_metadata["logprobs"]["content"]) == LENGTH
    several = chain(connection, n=2, seed=1, temperature=1.0).generate([[HumanMessage("Write a function.")]])
    assert len(several.generations[0]) == 2
    stop = chatted[len(chatted) // 2 :][:2]
    assert chain(connection).invoke("Write a function.", stop=[stop]).content == chatted.partition(stop)[0]


def test_langchain_gets_fifty_answers_at_once(connection: dict[str, str]):
    made = chain(connection).batch(
        [f"Number {number}" for number in range(AT_ONCE)], {"max_concurrency": AT_ONCE}
    )
    assert [one.usage_metadata["output_tokens"] for one in made] == [LENGTH] * AT_ONCE


def test_langchain_passes_a_wrong_key_on_as_openais_error_where_there_is_a_key(
    worker: Served, connection: dict[str, str], chatted: str
):
    stranger = chain({**connection, "api_key": "wrong"})
    if worker.api_key is None:
        assert stranger.invoke("Write a function.").content == chatted
        return
    with pytest.raises(openai.AuthenticationError):
        stranger.invoke("Write a function.")


# Batches on uploads: what each client calls is its own way of OpenAI's Files API and Batch API.


def batch_rows() -> bytes:
    """Two chats that get the engine's text, and one that is too long for the model."""
    body = {"model": MODEL, "max_tokens": LENGTH, "temperature": 0, "ignore_eos": True}
    contents = [MESSAGES, MESSAGES, [{"role": "user", "content": PROMPT * 500}]]
    rows = [
        {
            "custom_id": f"row-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {**body, "messages": messages},
        }
        for number, messages in enumerate(contents)
    ]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def texts_of(content: bytes) -> dict[str, str]:
    lines = [json.loads(line) for line in content.splitlines()]
    return {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}


def wait_until_ended(retrieve: Callable[[], Any]) -> Any:
    def ended() -> Any:
        batch = retrieve()
        return batch if batch.status in {"completed", "failed", "expired", "cancelled"} else None

    return wait_for(ended, 120, "the batch to end")


def test_openai_runs_a_batch_on_an_upload(client: openai.OpenAI, chatted: str):
    file = client.files.create(file=("rows.jsonl", batch_rows()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"}
    )
    assert batch.status == "validating"
    batch = wait_until_ended(lambda: client.batches.retrieve(batch.id))
    assert (batch.status, batch.metadata, batch.model) == ("completed", {"a": "b"}, MODEL)
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (
        3,
        2,
        1,
    )
    assert batch.usage.output_tokens == 2 * LENGTH
    answers = client.files.content(batch.output_file_id).content
    assert texts_of(answers) == {"row-0": chatted, "row-1": chatted}
    [error] = client.files.content(batch.error_file_id).content.splitlines()
    assert json.loads(error)["response"]["status_code"] == 400
    assert batch.id in [one.id for one in client.batches.list()]
    assert {one.id for one in client.files.list(purpose="batch_output")} >= {
        batch.output_file_id,
        batch.error_file_id,
    }
    assert client.files.delete(file.id).deleted


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_litellm_runs_a_batch_on_an_upload(
    litellm: Any, connection: dict[str, str], chatted: str, provider: str
):
    words = {
        "custom_llm_provider": provider,
        "api_base": connection["base_url"],
        "api_key": connection["api_key"],
    }
    file = litellm.create_file(file=("rows.jsonl", batch_rows()), purpose="batch", **words)
    batch = litellm.create_batch(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **words
    )
    batch = wait_until_ended(lambda: litellm.retrieve_batch(batch_id=batch.id, **words))
    assert batch.status == "completed"
    answers = litellm.file_content(file_id=batch.output_file_id, **words).content
    assert texts_of(answers) == {"row-0": chatted, "row-1": chatted}
    assert litellm.file_content(file_id=batch.error_file_id, **words).content.count(b"\n") == 1
    assert batch.id in [one.id for one in litellm.list_batches(**words).data]


class Verdict(BaseModel):
    """What the model is asked for by common-ai."""

    verdict: Literal["good", "bad"]


@pytest.fixture
def llm_batch(connection: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs a task of common-ai's ``@task.llm_batch``, as the example DAG has it, on the worker."""
    from airflow.dag_processing.dagbag import DagBag
    from airflow.providers.common.ai.operators import llm_batch

    monkeypatch.setenv(
        "AIRFLOW_CONN_ARCADIA_WORKER",
        json.dumps(
            {"conn_type": "pydanticai", "host": connection["base_url"], "password": connection["api_key"]}
        ),
    )
    # It polls every 30 seconds at the least.
    monkeypatch.setattr(llm_batch, "time", SimpleNamespace(time=time.time, sleep=lambda _: time.sleep(0.1)))
    dag = DagBag(dag_folder=ROOT / "dags" / "arcadia_llm_batch.py").dags["arcadia_llm_batch"]

    def run(**settings: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        task: Any = dag.get_task("qwen.judge_reviews")
        words = {"model_id": f"openai:{MODEL}", "result_path": f"file://{tmp_path}/results", **settings}
        for name, value in words.items():
            setattr(task, name, value)
        context = make_context(run_id=uuid.uuid4().hex)
        context["ti"].xcom_push = lambda key, value: None
        context["task_instance"] = context["ti"]
        manifest = task.execute(context)
        path = Path(manifest["result_uri"].removeprefix("file://"))
        return manifest, [json.loads(line) for line in path.read_text().splitlines()]

    return run


def test_common_ais_llm_batch_runs_on_the_worker(llm_batch: Any):
    manifest, rows = llm_batch(request_params={"temperature": 0, "ignore_eos": True}, max_tokens=LENGTH)
    assert manifest["terminal_reason"] == "succeeded"
    assert manifest["counts"]["succeeded"] == 3
    assert [row["status"] for row in sorted(rows, key=lambda row: row["index"])] == ["success"] * 3
    assert all(row["usage"]["output_tokens"] == LENGTH for row in rows)


def test_common_ais_llm_batch_gets_structured_output(llm_batch: Any):
    _, rows = llm_batch(output_type=Verdict, max_tokens=200, request_params={"temperature": 0})
    assert {row["status"] for row in rows} <= {"success", "invalid_output"}
    assert all(row["output"]["verdict"] in {"good", "bad"} for row in rows if row["status"] == "success")


def test_common_ais_llm_batch_is_told_of_a_row_that_fails(llm_batch: Any):
    manifest, rows = llm_batch(system_prompt=PROMPT * 500)
    assert manifest["terminal_reason"] == "partial"
    assert manifest["counts"]["errored"] == 3
    assert all("context" in row["error"]["message"] for row in rows)
