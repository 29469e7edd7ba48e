"""When a patch of vLLM is applied, and what is logged."""

import pytest

from airflow_arcadia.runtime.server_command import server_env
from airflow_arcadia.runtime.vllm_patches import gate
from airflow_arcadia.runtime.vllm_patches.gate import NotNeeded, apply, in_worker, refusal
from airflow_arcadia.worker import PlacedWorker

TESTED = ("0.32",)


@pytest.fixture(autouse=True)
def version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "vllm_version", lambda: "0.32.1+cpu")
    monkeypatch.delenv(gate.SWITCH_VARIABLE, raising=False)


@pytest.mark.parametrize("version", ["0.32", "0.32.0", "0.32.0+cpu", "0.32.1.dev3"])
def test_a_tested_release_is_patched(version: str):
    assert refusal(version, TESTED, "on") is None


@pytest.mark.parametrize("version", ["0.33.0", "0.3", "0.320.1", "1.0", "dev"])
def test_an_untested_one_only_when_asked_for(version: str):
    told = refusal(version, TESTED, "on")
    assert told is not None
    assert version in told
    assert "0.32" in told
    assert refusal(version, TESTED, "untested") is None


def test_switched_off_means_off():
    assert "off" in str(refusal("0.32.0", TESTED, "off"))


def test_a_patch_that_is_on_says_what_it_does(capsys: pytest.CaptureFixture[str]):
    assert apply("it", TESTED, lambda: "all is well")
    assert capsys.readouterr().out == "arcadia: vLLM patch it is on: all is well\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AttributeError("no SpinCondition"), "it does not fit this vLLM (AttributeError: no SpinCondition)"),
        (ImportError("gone"), "it does not fit this vLLM (ImportError: gone)"),
        (NotNeeded("16 CPUs are enough"), "16 CPUs are enough"),
    ],
)
def test_a_patch_that_cannot_be_applied_is_off_and_harms_nothing(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
):
    def change() -> str:
        raise error

    assert not apply("it", TESTED, change)
    assert capsys.readouterr().out == f"arcadia: vLLM patch it is off: {said}\n"


def test_an_unknown_vllm_is_not_touched(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gate, "vllm_version", lambda: "0.33.0")
    touched: list[str] = []
    assert not apply("it", TESTED, lambda: touched.append("it") or "")
    assert touched == []


def test_every_launchers_server_carries_the_mark():
    spec = PlacedWorker(name="w", model="m", port=1)
    assert not in_worker({})
    assert in_worker(server_env(spec, spec.to_env(), None))
