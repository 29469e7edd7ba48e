"""Asynchronous scheduling on CPU builds."""

import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_arcadia.processes import OWNED_VARIABLE
from airflow_arcadia.runtime.vllm_patches.async_scheduling import OUR_WORKER, VLLMS_WORKER, enable, stand_in


@pytest.fixture(autouse=True)
def in_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWNED_VARIABLE, "worker/w")


def config(**parallel: Any) -> Any:
    """A ``VllmConfig`` as vLLM's CPU platform leaves it, as far as it matters here."""
    usual = {"world_size": 1, "distributed_executor_backend": "mp", "worker_cls": VLLMS_WORKER}
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**{**usual, **parallel}),
        scheduler_config=SimpleNamespace(async_scheduling=False),
        speculative_config=None,
        kv_transfer_config=None,
        use_v2_model_runner=False,
    )


def test_it_is_switched_on_for_one_rank_and_stays_on_when_the_config_is_gone_over_again():
    chosen = config()
    enable(chosen, True)
    chosen.scheduler_config.async_scheduling = False
    enable(chosen, True)
    assert chosen.scheduler_config.async_scheduling is True
    assert chosen.parallel_config.worker_cls == OUR_WORKER


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, False),
        ({"world_size": 2}, True),
        ({"distributed_executor_backend": "ray"}, True),
        ({"worker_cls": "somebody.Worker"}, True),
    ],
    ids=["not wanted", "two ranks", "Ray", "another worker class"],
)
def test_it_stays_off_elsewhere(changed: dict[str, Any], wanted: bool):
    chosen = config(**changed)
    enable(chosen, wanted)
    assert chosen.scheduler_config.async_scheduling is False
    assert chosen.parallel_config.worker_cls != OUR_WORKER


def test_vllm_outside_a_worker_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(OWNED_VARIABLE)
    chosen = config()
    enable(chosen, True)
    assert chosen.scheduler_config.async_scheduling is False


def test_the_stand_ins_take_what_a_rank_asks_of_cuda():
    cuda = SimpleNamespace()
    stand_in(cuda)
    copies = cuda.Stream()
    event = cuda.Event(blocking=True)
    with cuda.stream(copies):
        copies.wait_stream(cuda.current_stream())
        event.record()
    event.synchronize()


@pytest.mark.engine
def test_its_worker_is_vllms(worker_python: str):
    script = (
        "from vllm.utils.import_utils import resolve_obj_by_qualname as find\n"
        f"print(issubclass(find({OUR_WORKER!r}), find({VLLMS_WORKER!r})))"
    )
    told = subprocess.run([worker_python, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "True"
