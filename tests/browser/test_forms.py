"""The forms that a new user meets first: the connection with its Test, and the trigger form."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.browser.stage import Run, Stage

expect = pytest.importorskip("playwright.sync_api", reason="make setup installs Playwright").expect

pytestmark = [pytest.mark.airflow, pytest.mark.browser, pytest.mark.timeout(300)]

DAG_ID = "arcadia_batch_inference"
SECTIONS = ("Rows", "Sampling", "Engine")
FIRST = {
    "Rows": "Answer only the first rows",
    "Sampling": "Longest answer, in tokens",
    "Engine": "Longest prompt and answer together",
}


def open_trigger_form(page: Any) -> Any:
    """Press Trigger on the DAG's page; the form."""
    page.get_by_test_id("trigger-dag-button").first.click()
    item = page.get_by_role("menuitem", name="Trigger", exact=True)
    form = page.get_by_role("dialog")
    expect(item.or_(form).first).to_be_visible()
    if item.is_visible():
        item.click()
    expect(form.locator("[name=element_model]")).to_be_visible()
    return form


def test_every_field_of_the_trigger_form_says_what_it_is_for(open_page: Any, stage: Stage):
    page = open_page(f"/dags/{DAG_ID}")
    form = open_trigger_form(page)
    params = stage.airflow.request("GET", f"/dags/{DAG_ID}/details")["params"]
    assert len(params) > 10
    shown = ""
    for section in (None, *SECTIONS):  # one is open at a time
        if section:
            form.get_by_role("button", name=section, exact=True).click()
            expect(form.get_by_text(FIRST[section])).to_be_visible()
        shown += form.inner_text()
    for name, param in params.items():
        expect(form.locator(f"[name='element_{name}']")).to_be_attached()
        assert param["description"] in shown, name


def test_a_run_triggered_from_the_form_starts_at_once_and_alone(open_page: Any, stage: Stage):
    page = open_page(f"/dags/{DAG_ID}")
    form = open_trigger_form(page)
    form.locator("[name=element_output]").fill(str(stage.folder / "out" / "by-form-%H%M%S.jsonl"))
    form.get_by_role("button", name="Rows", exact=True).click()
    form.locator("[name=element_limit]").fill("5")
    form.get_by_test_id("trigger-dag-submit").click()
    expect(form).to_be_hidden()

    def runs() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = stage.airflow.request("GET", f"/dags/{DAG_ID}/dagRuns")["dag_runs"]
        return found

    (only,) = stage.airflow.wait_for(runs, 30, "the run")
    run = Run(stage, DAG_ID, only["dag_run_id"], group="worker")
    assert only["run_type"] == "manual"
    assert only["conf"]["limit"] == 5
    run.wait_for("success")
    (answers,) = (stage.folder / "out").glob("by-form-*[0-9].jsonl")
    assert len(answers.read_text().splitlines()) == 5
    assert len(runs()) == 1


def test_the_test_of_a_right_connection_says_what_it_found(open_page: Any):
    page = open_page("/connections")
    page.get_by_role("row", name="arcadia_default").get_by_role("button", name="Test Connection").click()
    toast = page.get_by_role("status").filter(has_text="Test Connection Successful")
    for found in ("arcadia-config is valid", "Ray cluster two-gpus answers: Ray 2.60.0", "1 of 2 GPUs free"):
        expect(toast).to_contain_text(found)


def test_a_connection_filled_in_by_hand_keeps_its_lines_and_its_test_names_the_fault(
    open_page: Any, stage: Stage
):
    page = open_page("/connections")
    page.get_by_role("button", name="Add Connection").click()
    form = page.get_by_role("dialog")
    form.locator("[name=connection_id]").fill("by_hand")
    form.get_by_role("combobox").first.fill("arcadia")
    # Airflow 3.3 names the type, 3.2 the provider's name of it.
    page.get_by_role("option", name=re.compile("^(arcadia|KubeAGI Arcadia)$")).click()
    form.get_by_role("button", name="Extra Fields", exact=True).click()
    yaml = form.locator("textarea[name=element_arcadia_config_yaml], #element_arcadia_config_yaml")
    yaml.fill(stage.config)
    form.locator("#element_worker_python").fill("/nope/python")
    form.get_by_role("button", name="Save").click()
    expect(form).to_be_hidden()
    kept = stage.airflow.request("GET", "/connections/by_hand")
    assert json.loads(kept["extra"])["arcadia_config_yaml"].strip() == stage.config.strip()
    # Airflow 3.3.1 and 3.3.2 refuse to test a connection without a port: their UI sends 0 for none.
    port = {"connection_id": "by_hand", "conn_type": "arcadia", "port": 0}
    stage.airflow.request("PATCH", "/connections/by_hand?update_mask=port", json=port)
    page.reload()
    page.get_by_role("row", name="by_hand").get_by_role("button", name="Test Connection").click()
    toast = page.get_by_role("status").filter(has_text="Test Connection Failed")
    expect(toast).to_contain_text("The worker's Python /nope/python cannot tell its Ray version")
