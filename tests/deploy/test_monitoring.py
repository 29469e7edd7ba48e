"""The dashboard and the alerts name metrics that the code has, and Prometheus can read the rules."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_arcadia import metrics
from airflow_arcadia.runtime.worker_metrics import WorkerMetrics
from airflow_arcadia.worker import WorkerStatus
from tests.conftest import ROOT

DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
ALERTS = ROOT / "deploy" / "alerts.yaml"
RULES: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
EXPRESSIONS = [
    *(pytest.param(rule["expr"], id=rule["alert"]) for rule in RULES),
    *(pytest.param(t["expr"], id=panel["title"]) for panel in DASHBOARD["panels"] for t in panel["targets"]),
]


def of_airflow() -> set[str]:
    """Airflow's metrics as statsd_exporter names them."""
    return {f"airflow_{name.replace('.', '_')}" for name in metrics.NAMES}


def of_a_worker() -> set[str]:
    text = WorkerMetrics(WorkerStatus.READY).text().decode()
    return set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))


def of_vllm() -> set[str]:
    """The names of vLLM's metrics, as its source has them; counters are served with ``_total``."""
    sources = ROOT.glob(".venv-worker/lib/*/site-packages/vllm/v1/metrics/*.py")
    return set(re.findall(r'"(vllm:\w+)"', "".join(path.read_text() for path in sources)))


def named(expression: str) -> set[str]:
    """The metrics of an expression."""
    return set(re.findall(r"\b(?:airflow_arcadia|arcadia|vllm:)\w+", expression))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_names_metrics_that_are_there(expression: str):
    ours = {name for name in named(expression) if not name.startswith("vllm:")}
    assert ours <= of_airflow() | of_a_worker()
    if known := of_vllm():
        theirs = {name.removesuffix("_total") for name in named(expression) - ours}
        assert theirs <= {name.removesuffix("_total") for name in known}
    assert named(expression)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expressions_brackets_are_closed(expression: str):
    open_ones: list[str] = []
    for sign in expression:
        if sign in "([{":
            open_ones.append({"(": ")", "[": "]", "{": "}"}[sign])
        elif sign in ")]}":
            assert open_ones.pop() == sign
    assert open_ones == []


def test_both_alerts_say_what_to_do():
    assert [rule["alert"] for rule in RULES] == ["ArcadiaLeasePastItsTime", "ArcadiaBatchWithoutProgress"]
    for rule in RULES:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "description"}


def test_no_panel_covers_another():
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_reads_the_rules_and_the_panels(tmp_path: Path):
    rules = [{"record": f"panel:{i}", "expr": e.values[0]} for i, e in enumerate(EXPRESSIONS)]
    panels = tmp_path / "panels.yaml"
    panels.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    for path in (ALERTS, panels):
        command: list[str | Path] = [shutil.which("promtool") or "", "check", "rules", path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
