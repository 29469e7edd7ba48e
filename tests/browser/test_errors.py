"""What went wrong is read in the log of the failed task without scrolling."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.stage import Run, Stage

expect = pytest.importorskip("playwright.sync_api", reason="make setup installs Playwright").expect

pytestmark = [pytest.mark.airflow, pytest.mark.browser, pytest.mark.timeout(300)]

FAULTS = {
    "cluster": (
        {"num_gpus": 2, "ray_cluster": "nope"},
        "provision_ray_cluster",
        ["arcadia-config has no Ray cluster named 'nope'; it has", "Use one of these names or indexes."],
    ),
    "input": (
        {"input": "/no/such.jsonl"},
        "check_input",
        ["The input /no/such.jsonl does not exist.", "No row was sent.", "Correct the path."],
    ),
    "model": (
        {"model": "/no/such/model"},
        "provision_ray_cluster",
        ["Model path /no/such/model is not a folder.", "No worker was started.", "Point model at a folder"],
    ),
}
"""A wrong value in the form: what is typed, the task that fails, and the sentences of its error."""


@pytest.fixture(scope="module")
def failed_runs(stage: Stage) -> dict[str, Run]:
    """One failed run for each fault, started side by side."""
    runs = {}
    for name, (conf, *_) in FAULTS.items():
        started = stage.trigger("inference_with_faults", conf)
        runs[name] = Run(stage, started.dag_id, started.run_id, group="worker")
    for run in runs.values():
        run.wait_for("failed")
    return runs


@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_is_understood_from_what_is_on_the_screen(
    open_page: Any, failed_runs: dict[str, Run], fault: str
):
    _, task, sentences = FAULTS[fault]
    page = open_page(failed_runs[fault].path(task))
    for sentence in sentences:
        expect(page.get_by_text(sentence).first).to_be_in_viewport(ratio=1)
