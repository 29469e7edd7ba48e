"""Ray Data LLM's vLLM processor, for comparison.

Run by the worker's Python, with pandas and pyarrow on its path:
``python -m benchmarks.ray_data_llm MODEL ROWS BATCH_SIZE FLAG…``; the flags are the server's own. The
pipeline is built once and runs through all rounds, so that its engine is loaded once: the rows of a round
wait in the pipeline's first stage until a line on standard input lets them go on.

Tuned as its documentation advises: whole batches, tokenising inside the engine, no metrics.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.data.llm import build_processor, vLLMEngineProcessorConfig

from benchmarks.peer_protocol import answer, engine_limits
from benchmarks.workloads import request_bodies

MAX_ROUNDS = 64
OBJECT_STORE = 256 * 2**20
LOGICAL_CPUS = 8
"""More than there are: with as many as there are, the engine's stage can wait for ever for the others."""


@ray.remote(num_cpus=0)
class Gate:
    """Holds the rows of a round back until the round begins."""

    def __init__(self) -> None:
        import asyncio

        self._open = 0
        self._changed = asyncio.Condition()

    async def open(self, number: int) -> None:
        """Let the rows of round ``number`` go on."""
        async with self._changed:
            self._open = number
            self._changed.notify_all()

    async def wait(self, number: int) -> None:
        """Return when round ``number`` has begun."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._open >= number)


class Pipeline:
    """All rounds as one data set; round 0 is one batch, and loads the engine.

    :param bodies: the requests of a round, in OpenAI's form; each round sends all of them.
    :param batch_size: rows a batch; divides the number of requests.
    """

    def __init__(self, model: str, bodies: list[dict[str, Any]], flags: list[str], batch_size: int) -> None:
        if len(bodies) % batch_size:
            raise ValueError(f"{len(bodies)} rows do not divide into batches of {batch_size}.")
        self._gate = Gate.options(name="gate").remote()  # type: ignore[attr-defined]
        self._rows, self._batch_size = len(bodies), batch_size
        self._answered = 0
        self._error: BaseException | None = None
        self._progress = threading.Condition()
        config = vLLMEngineProcessorConfig(
            model_source=model,
            engine_kwargs=engine_limits(model, flags),
            batch_size=batch_size,
            concurrency=1,
            log_engine_metrics=False,
            tokenize_stage=False,
            detokenize_stage=False,
        )
        processor = build_processor(
            config,
            preprocess=_preprocess(bodies, batch_size),
            postprocess=_postprocess,
            preprocess_map_kwargs={"concurrency": 4},
        )
        total = batch_size + MAX_ROUNDS * self._rows
        self._answers = processor(ray.data.range(total, override_num_blocks=total // batch_size))
        threading.Thread(target=self._consume, daemon=True).start()

    def run(self, number: int) -> float:
        """Send the rows of that round; returns the seconds until the last of them is answered."""
        wanted = self._batch_size + number * self._rows
        began = time.monotonic()
        ray.get(self._gate.open.remote(number))
        with self._progress:
            self._progress.wait_for(lambda: self._answered >= wanted or self._error)
        if self._error:
            raise self._error
        return time.monotonic() - began

    def _consume(self) -> None:
        try:
            # Without prefetching: a batch that is fetched ahead is one that is not told of.
            batches = self._answers.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy")
            for batch in batches:
                with self._progress:
                    self._answered += len(batch["text"])
                    self._progress.notify_all()
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            with self._progress:
                self._error = error
                self._progress.notify_all()


def _preprocess(bodies: list[dict[str, Any]], batch_size: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What the processor's first stage does to a row: wait for its round, and look up its request."""
    passed = 0

    def prepare(row: dict[str, Any]) -> dict[str, Any]:
        nonlocal passed
        place = int(row["id"]) - batch_size
        number = 1 + place // len(bodies) if place >= 0 else 0
        if number > passed:
            ray.get(ray.get_actor("gate").wait.remote(number))
            passed = number
        body = bodies[place % len(bodies)]
        sampling = {key: body[key] for key in ("max_tokens", "temperature", "ignore_eos")}
        return {"messages": body["messages"], "sampling_params": sampling}

    return prepare


def _postprocess(row: dict[str, Any]) -> dict[str, Any]:
    return {"text": row["generated_text"], "tokens": row["num_generated_tokens"]}


def main() -> None:
    model, rows, batch_size, *flags = sys.argv[1:]
    bodies = request_bodies(Path(rows))
    ray.init(
        address="local",
        num_cpus=LOGICAL_CPUS,
        num_gpus=1,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE,
        log_to_driver=False,
        # Ray's processes do not see this one's sys.path.
        runtime_env={"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}},
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    pipeline = Pipeline(model, bodies, flags, int(batch_size))
    pipeline.run(0)
    answer("ready")
    for number, _ in enumerate(sys.stdin, start=1):
        answer({"seconds": pipeline.run(number)})
    ray.shutdown()
    # The thread that reads the answers would connect to Ray again to say that they ended.
    os._exit(0)


if __name__ == "__main__":
    main()
