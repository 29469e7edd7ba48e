"""Links on a task's page lead somewhere, or are not there."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from airflow_arcadia.ui import links
from airflow_arcadia.ui.view import Task

AIRFLOW = "http://127.0.0.1:8080"
RAY = {"dashboard_url": "http://127.0.0.1:8265", "created": True}
HANDLE = {"name": "w", "url": "http://127.0.0.1:21002"}


def task(
    step: str, operator: str, state: str | None = "success", value: Any = None, group: str = "qwen"
) -> Task:
    started = None if state is None else 1.0
    return Task("dag", "manual__1+00:00", f"{group}.{step}", -1, operator, state, started, value=value)


def a_run(teardown: str | None = None, ray: dict[str, Any] = RAY, url: str = HANDLE["url"]) -> list[Task]:
    return [
        task("provision_ray_cluster", links.PROVISION_OPERATOR, value=ray),
        task("launch_worker", links.LAUNCH_OPERATOR, value={**HANDLE, "url": url}),
        task("model_ready", links.READY_OPERATOR),
        task("answer", links.BATCH_OPERATOR, "running"),
        task("teardown_worker", "ArcadiaTeardownWorkerOperator", teardown),
        task(
            "launch_worker",
            links.LAUNCH_OPERATOR,
            value={**HANDLE, "url": "http://127.0.0.1:1"},
            group="other",
        ),
    ]


def shown(run: list[Task], step: str = "answer", base: str = AIRFLOW, **rendered: Any) -> dict[str, str]:
    (one,) = (task for task in run if task.task_id == f"qwen.{step}")
    return links.links_of(one, run, base, rendered)


def test_while_the_worker_lives_every_link_is_there():
    where = "/dags/dag/runs/manual__1%2B00%3A00/tasks/qwen"
    assert shown(a_run(), output_uri="https://a.example.com/answers.jsonl") == {
        "Output": "https://a.example.com/answers.jsonl",
        "Ray dashboard": "http://127.0.0.1:8265",
        "Worker API": "http://127.0.0.1:21002/v1/models",
        "Worker log": f"{where}.model_ready",
        "Batch": f"{where}.answer/plugin/arcadia-batch",
    }


def test_after_the_teardown_what_has_ended_is_not_linked():
    assert set(shown(a_run("success"))) == {"Worker log", "Batch"}
    lasting = {**RAY, "created": False}
    assert set(shown(a_run("success", lasting))) == {"Ray dashboard", "Worker log", "Batch"}


def test_the_log_of_the_waiting_task_itself_is_not_linked_from_it():
    assert "Worker log" not in shown(a_run(), "model_ready")


def test_links_to_airflow_keep_its_prefix():
    assert shown(a_run(), base="https://example.com/team/airflow")["Batch"].startswith(
        "/team/airflow/dags/dag/"
    )


def test_a_task_that_has_not_started_is_not_linked():
    waiting = [task("model_ready", links.READY_OPERATOR, None), task("answer", links.BATCH_OPERATOR, None)]
    assert shown([*waiting, task("reserve", "ArcadiaReserveWorkerOperator")], "reserve") == {}


@pytest.mark.parametrize(
    ("url", "airflow", "reachable"),
    [
        ("http://127.0.0.1:8265", AIRFLOW, True),
        ("http://127.0.0.1:8265", "https://airflow.example.com", False),
        ("http://localhost:1", "", True),
        ("http://[::1]:1", "https://airflow.example.com", False),
        ("http://qwen.arcadia.svc:21002", AIRFLOW, False),
        ("http://head.arcadia.svc.cluster.local:8265", AIRFLOW, False),
        ("http://controller:21001", AIRFLOW, False),
        ("http://10.0.0.5:8265", "https://airflow.example.com", True),
        ("https://store.example.com/answers.jsonl", AIRFLOW, True),
        ("s3://answers/today.jsonl", AIRFLOW, False),
        ("/var/answers.jsonl", AIRFLOW, False),
        ("", AIRFLOW, False),
    ],
)
def test_only_what_a_browser_can_reach_is_linked(url, airflow, reachable):
    assert links.is_reachable(url, airflow) is reachable


def test_every_link_is_shown_on_every_task_of_a_group():
    names = {operator.__name__ for operator in links.LINKS[0].operators}
    assert {links.BATCH_OPERATOR, links.LAUNCH_OPERATOR, links.READY_OPERATOR} < names
    assert len({link.name for link in links.LINKS}) == len(links.LINKS) == 5


def test_loading_the_plugin_imports_no_client_of_ours():
    """Every component of Airflow loads its plugins."""
    before = "import sys, airflow.plugins_manager, airflow.sdk; before = set(sys.modules)"
    load = "import airflow_arcadia.ui.plugin; new = set(sys.modules) - before"
    code = f"{before}; {load}; print(sorted({{'aiohttp', 'fastapi', 'pydantic'}} & new))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
