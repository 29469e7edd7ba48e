"""The command line."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_arcadia.batch import BatchSpec
from airflow_arcadia.batch.__main__ import main
from tests.batch.fake_engine import FakeEngine
from tests.batch.reading import answers

Write = Callable[..., str]


def test_a_dry_run_reads_every_row_and_sends_none(
    write_rows: Write, output: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["run", "--input", write_rows({"prompt": "x"}), "--output", output, "--dry-run"]) == 0
    assert "1 row" in capsys.readouterr().out
    assert not Path(output).exists()


def test_bad_input_has_its_own_exit_status(output: str, capsys: pytest.CaptureFixture[str]):
    assert main(["run", "--input", "/none.jsonl", "--output", output, "--dry-run"]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(("parameters", "said"), [("{", "not valid JSON"), ("[1]", "not a JSON object")])
def test_parameters_that_are_not_an_object_are_refused(
    write_rows: Write, output: str, capsys: pytest.CaptureFixture[str], parameters: str, said: str
):
    words = ["run", "--input", write_rows({"prompt": "x"}), "--output", output, "--dry-run"]
    assert main([*words, "--parameters", parameters]) == 2
    assert main([*words, "--response-schema", parameters]) == 2
    assert said in capsys.readouterr().err


def test_every_limit_of_a_batch_can_be_set_on_the_command_line(
    write_rows: Write, output: str, monkeypatch: pytest.MonkeyPatch
):
    from airflow_arcadia.batch import __main__ as command

    given: list[BatchSpec] = []
    monkeypatch.setattr(command, "check_input", lambda spec: given.append(spec) or 1)
    limits = ["--max-failed-fraction", "0.25", "--request-timeout", "7", "--hang-timeout", "0"]
    words = ["run", "--input", write_rows({"prompt": "x"}), "--output", output, "--dry-run"]
    assert main([*words, *limits, "--column-as-parameter", "seed"]) == 0
    (spec,) = given
    assert (spec.max_failed_fraction, spec.request_timeout_s, spec.hang_timeout_s) == (0.25, 7, 0)
    assert list(spec.columns_as_parameters) == ["seed"]


async def test_a_batch_from_the_command_line(engine: FakeEngine, write_rows: Write, output: str):
    import asyncio

    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *(
            "-m",
            "airflow_arcadia.batch",
            "run",
            "--endpoint",
            engine.url,
            "--limit",
            "2",
            "--max-tokens",
            "9",
        ),
        *("--input", write_rows(*[{"prompt": "x"}] * 5), "--output", output),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err
    assert b'"rows": 2' in out
    assert b"2 / 2 rows" in err
    assert len(answers(output)) == 2
    assert engine.bodies[0]["max_tokens"] == 9
