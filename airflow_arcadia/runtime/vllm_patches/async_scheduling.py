"""vLLM's asynchronous scheduling on its CPU build, as vLLM has it by default on GPUs.

The core plans the next step while a rank still computes this one; without it each waits for the other, on two
CPUs for a fifth of the time. vLLM's CPU platform switches it off as not needed. What hinders it is only that
a rank hands its tokens over by CUDA's streams: on a CPU a tensor is there as soon as it is returned, so their
stand-ins do nothing. For one rank without Ray; ``--no-async-scheduling`` keeps it off.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from airflow_arcadia.processes import OWNED_VARIABLE
from airflow_arcadia.runtime.supervisor import say

VLLMS_WORKER = "vllm.v1.worker.cpu_worker.CPUWorker"
OUR_WORKER = f"{__name__}.RunAheadWorker"


def enable(config: Any, wanted: bool | None) -> None:
    """Switch it on in a config (``VllmConfig``) that vLLM's CPU platform has gone over, where it can be.

    :param wanted: ``async_scheduling`` before that.
    """
    parallel = config.parallel_config
    if (
        wanted
        and OWNED_VARIABLE in os.environ
        and parallel.world_size == 1
        and parallel.distributed_executor_backend == "mp"
        and parallel.worker_cls in {VLLMS_WORKER, OUR_WORKER}
        and config.speculative_config is None
        and config.kv_transfer_config is None
        and not config.use_v2_model_runner
    ):
        config.scheduler_config.async_scheduling = True
        parallel.worker_cls = OUR_WORKER


class Event:
    """In place of ``torch.cuda.Event``: it has always happened."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, *_: Any) -> None:
        """Nothing is pending."""

    def synchronize(self) -> None:
        """Nothing is waited for."""


class Stream:
    """In place of ``torch.cuda.Stream``: everything in it is done."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, *_: Any) -> None:
        """Nothing is waited for."""


def stand_in(cuda: Any) -> None:
    """Give ``torch.cuda`` of a process without CUDA what a rank uses of it."""
    cuda.Event, cuda.Stream = Event, Stream
    cuda.current_stream = Stream
    cuda.stream = contextlib.nullcontext


def __getattr__(name: str) -> Any:
    # The class needs vLLM's, which must not be imported before a rank asks for it.
    if name != "RunAheadWorker":
        raise AttributeError(name)
    import torch
    from vllm.v1.worker.cpu_worker import CPUWorker

    class RunAheadWorker(CPUWorker):  # type: ignore[misc]  # untyped base, only there in the worker
        """vLLM's CPU worker, whose answers need not be waited for before its next step."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            stand_in(torch.cuda)
            say("the engine schedules asynchronously; --no-async-scheduling in extra_args prevents it")
            super().__init__(*args, **kwargs)

    globals()[name] = RunAheadWorker
    return RunAheadWorker
