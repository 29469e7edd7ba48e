"""What a DAG author imports: every public name, lazily, with types that find a misspelt option."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import airflow_arcadia
from tests.conftest import ROOT

SAMPLE = """
import pendulum
from airflow.sdk import DAG

from airflow_arcadia import (
    ArcadiaBatchInferenceOperator,
    ArcadiaLaunchWorkerOperator,
    ArcadiaProvisionRayClusterOperator,
    ArcadiaWorkerGroup,
    PodOptions,
)

POD: PodOptions = {"image": "worker:1", "image_pull_secrets": ["regcred"], "run_as_user": "{{ params.user }}"}

with DAG("answers", schedule="@daily", start_date=pendulum.datetime(2026, 1, 1)):
    with ArcadiaWorkerGroup(
        "qwen",
        model="Qwen/Qwen2.5-7B-Instruct",
        num_gpus="{{ params.gpus }}",
        engine={"max_num_seqs": 128, "trust_remote_code": "{{ params.trust }}", "extra_args": "--seed 1"},
        pod=POD,
        ray_cluster_spec={"ray_version": "2.60.0", "num_gpus": 2},
        custom_resource={"existing": False, "name": "qwen"},
        startup_timeout=3600,
        lease_duration=7200,
    ) as worker:
        ArcadiaBatchInferenceOperator(
            task_id="answer",
            worker=worker.handle,
            input="s3://prompts/{{ ds }}.jsonl",
            output="s3://answers/{{ ds }}.jsonl",
            options={"overwrite": "{{ params.overwrite }}", "max_in_flight": 64},
        )
    ArcadiaProvisionRayClusterOperator(task_id="provision", lease="l", pod={"image": "worker:1"})
    ArcadiaLaunchWorkerOperator(task_id="launch", lease="l", model="m", engine={"dtype": "half"})
"""
MISSPELT = {
    '"max_num_seqs"': ('"max_num_seq"', "EngineOptions"),
    '"image_pull_secrets"': ('"image_pull_secret"', "PodOptions"),
    '"ray_version"': ('"ray_versoin"', "KubeRayOptions"),
    '"existing"': ('"exist"', "ArcadiaWorkerOptions"),
    '"overwrite"': ('"overwrit"', "BatchOptions"),
}
"""Key of the sample → how it is misspelt, and the type that must notice it."""


def in_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()


@pytest.mark.parametrize("name", airflow_arcadia.__all__)
def test_every_public_name_is_importable_from_the_package(name: str):
    assert getattr(airflow_arcadia, name) is not None
    assert name in dir(airflow_arcadia)


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'ArcadiaWorker'"):
        _ = airflow_arcadia.ArcadiaWorker


def test_the_package_is_imported_without_airflow_until_a_name_needs_it():
    loaded = in_python(
        "import airflow_arcadia, sys; print('airflow' in sys.modules, 'pydantic' in sys.modules)"
    )
    assert loaded == "False False"


@pytest.mark.slow
def test_a_strict_type_check_accepts_a_dag_and_finds_every_misspelt_option(tmp_path: Path):
    assert (ROOT / "airflow_arcadia" / "py.typed").exists()
    right, wrong = tmp_path / "right_dag.py", tmp_path / "wrong_dag.py"
    right.write_text(SAMPLE)
    source = SAMPLE
    for key, (misspelt, _) in MISSPELT.items():
        source = source.replace(key, misspelt)
    wrong.write_text(source)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(right), str(wrong)]
    said = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT).stdout.splitlines()
    assert not [line for line in said if "right_dag" in line]
    for _, options in MISSPELT.values():
        assert [line for line in said if "wrong_dag" in line and options in line], (options, said)
