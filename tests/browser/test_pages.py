"""The Arcadia page and the batch tab, in a browser, while batches run."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.browser.stage import Run, Stage

expect = pytest.importorskip("playwright.sync_api", reason="make setup installs Playwright").expect

pytestmark = [pytest.mark.airflow, pytest.mark.browser, pytest.mark.timeout(300)]

THEMES = pytest.mark.parametrize("theme", ["light", "dark"])
PAGE = "/plugin/arcadia"


def tab(run: Run) -> str:
    """Path of the batch's tab."""
    return f"{run.path('answer')}/plugin/arcadia-batch"


def frame_of(page: Any) -> Any:
    """Our page, which Airflow shows in a frame; its first reading is there."""
    frame = page.frame_locator("iframe")
    expect(frame.locator("body[data-read=yes]")).to_be_attached(timeout=30_000)
    return frame


def background(element: Any) -> str:
    """The first colour behind an element that is not transparent."""
    found = element.evaluate(
        """element => {
          let colour = "rgba(0, 0, 0, 0)";
          for (; element && colour === "rgba(0, 0, 0, 0)"; element = element.parentElement)
            colour = getComputedStyle(element).backgroundColor;
          return colour;
        }"""
    )
    return str(found)


def cluster_of(frame: Any) -> Any:
    """The row of the Ray cluster, as the connection that the DAGs use lists it."""
    return frame.locator("#clusters tr", has_text="two-gpus").filter(has_text="arcadia_default: http")


def act(frame: Any, button: Any, note: str) -> None:
    """Press a button and confirm what it asks."""
    button.click()
    frame.locator("#confirm-note").fill(note)
    frame.locator("#confirm-ok").click()


@THEMES
def test_the_page_shows_a_running_batch_its_worker_and_the_clusters(
    open_page: Any, stage: Stage, slow_run: Run, theme: str, picture: Any
):
    page = open_page("/", theme=theme)
    page.get_by_role("button", name="Browse").click()
    page.get_by_role("menuitem", name="Arcadia").click()
    frame = frame_of(page)
    assert background(frame.locator("body")) == background(page.locator("iframe"))
    batch = frame.locator("tr[data-batch]", has_text=slow_run.dag_id)
    expect(batch).to_contain_text("running")
    expect(batch.locator("svg.spark polyline")).to_be_attached()
    expect(batch.get_by_role("button", name="Cancel")).to_be_in_viewport(ratio=1)
    done = batch.locator(".bar span")
    before = done.inner_text()
    assert re.fullmatch(r"[\d,]+ / 3,000", before)
    expect(done).not_to_have_text(before)
    worker = frame.locator(f"tr[data-lease='{slow_run.lease}']")
    for shown in ("stand-in", "ready", "TP 1", "process", "GPU-hours", "25 %", slow_run.run_id):
        expect(worker).to_contain_text(shown)
    cluster = cluster_of(frame)
    for shown in ("Ray 2.60.0", "healthy"):
        expect(cluster).to_contain_text(shown)
    expect(frame.locator("#clusters tr.node").first).to_contain_text("127.0.0.1 (head)")
    expect(frame.locator("#strip")).to_contain_text(slow_run.dag_id)
    expect(frame.locator("#strip")).to_contain_text("No lease is past its time")
    picture(page, f"arcadia-page-{theme}")


@THEMES
def test_the_tab_of_a_batch_shows_its_progress_and_its_timeline(
    open_page: Any, slow_run: Run, theme: str, picture: Any
):
    page = open_page(tab(slow_run), theme=theme)
    frame = frame_of(page)
    expect(frame.locator(".facts")).to_contain_text("/ 3,000")
    expect(frame.locator("#throughput svg polyline")).to_be_attached()
    steps = frame.locator("#timeline tbody tr td:first-child")
    expect(steps.last).to_have_text("first rows")
    order = [text for text in steps.all_inner_texts() if text != "check_input"]
    picture(page, f"batch-tab-{theme}")
    assert order == [
        "reserve",
        "provision_ray_cluster",
        "launch_worker",
        "model_ready",
        "answer",
        "first rows",
    ]


def test_a_task_has_links_to_what_a_browser_can_reach(open_page: Any, slow_run: Run):
    page = open_page(f"{slow_run.path('launch_worker')}/details")
    link = page.get_by_role("link", name="Worker API")
    expect(link).to_have_attribute("href", re.compile(r"^http://127\.0\.0\.1:\d+/v1/models$"))
    expect(page.get_by_role("link", name="Worker log")).to_be_visible()
    expect(page.get_by_role("link", name="Ray dashboard")).to_have_count(0)  # one GPU needs no Ray cluster
    # Airflow opens a link in a window of its own or in this one, as it likes.
    target = page.locator("a[href$='qwen.answer/plugin/arcadia-batch']").first.get_attribute("href")
    page.goto(str(page.evaluate("target => new URL(target, location.href).href", target)))
    expect(frame_of(page).locator(".facts")).to_contain_text("/ 3,000")


def test_a_page_that_is_loaded_again_is_still_there(open_page: Any, slow_run: Run):
    page = open_page(PAGE)
    frame_of(page)
    page.reload()
    expect(frame_of(page).locator("#strip")).to_contain_text(slow_run.dag_id)


@pytest.mark.parametrize(
    ("dag_id", "state"), [("answers_in_worker", "deferred"), ("answers_in_task", "running")]
)
def test_a_batch_shows_its_progress_and_is_cancelled(open_page: Any, stage: Stage, dag_id: str, state: str):
    run = stage.trigger(dag_id)
    frame = frame_of(open_page(PAGE))
    batch = frame.locator("tr[data-batch]", has_text=dag_id)
    expect(batch).to_contain_text(state, timeout=90_000)
    expect(batch.locator(".bar")).to_contain_text(re.compile(r"[1-9]\d* / 3,000"))
    act(frame, batch.get_by_role("button", name="Cancel"), f"the prompts of {dag_id} are wrong")
    expect(frame.locator("#message")).to_contain_text("stops at the next committed row")
    run.wait_for("failed")
    expect(batch).to_contain_text("failed")
    log = stage.audit_log("arcadia_cancel_batch")
    (entry,) = [one for one in log if one["dag_id"] == dag_id]
    assert f"the prompts of {dag_id} are wrong" in entry["extra"]
    assert entry["run_id"] == run.run_id
    stage.airflow.wait_for(lambda: not run.processes(), 30, "the worker to be gone")
    kept = lambda: list((stage.folder / "out").glob(f".{run.run_id}.jsonl.parts/seg-*"))  # noqa: E731
    stage.airflow.wait_for(kept, 30, "the batch to commit its last rows as it stops")


def test_failed_rows_are_answered_again_and_all_others_are_kept(open_page: Any, stage: Stage):
    run = stage.trigger("some_rows_fail")
    run.wait_for("success")
    before = run.output()
    page = open_page(PAGE)
    frame = frame_of(page)
    batch = frame.locator("tr[data-batch]", has_text=run.dag_id)
    expect(batch.locator("td").nth(3)).to_have_text("2")
    frame.get_by_label("Needs attention only").check()
    expect(batch).to_be_visible()
    expect(frame.locator("tr[data-batch]", has_text="nightly_answers")).to_have_count(0)
    batch.get_by_role("button", name="Show answers").click()
    shown = frame.locator("#batches")
    for text in ("What is 0 + 0?", "sum-2", "Failed rows by code", "invalid_request"):
        expect(shown).to_contain_text(text)
    (stage.folder / "poison").unlink()
    frame.get_by_label("Needs attention only").uncheck()
    act(frame, batch.get_by_role("button", name="Retry failed rows"), "the filter is off now")
    expect(frame.locator("#message")).to_contain_text("2 failed rows are answered again")
    stage.airflow.wait_for(
        lambda: run.state in {"queued", "running"} or run.states()["answer"] is None, 30, "the run to go on"
    )
    run.wait_for("success")
    expect(batch.locator("td").nth(3)).to_have_text("0")
    after = run.output()
    assert len(after) == len(before) == 10
    assert [i for i in range(10) if before[i] != after[i]] == [3, 7]
    assert [b'"error":null' in line.replace(b" ", b"") for line in after] == [True] * 10
    (entry,) = stage.audit_log("arcadia_retry_failed_rows")
    assert "the filter is off now" in entry["extra"]


def test_a_button_keeps_the_focus_of_the_keyboard_while_the_page_is_read_again(open_page: Any, slow_run: Run):
    frame = frame_of(open_page(PAGE))
    button = frame.locator(f"tr[data-lease='{slow_run.lease}']").get_by_role("button", name="Extend")
    button.focus()
    done = frame.locator("tr[data-batch]", has_text=slow_run.dag_id).locator(".bar span")
    before = done.inner_text()
    expect(done).not_to_have_text(before)
    expect(button).to_be_focused(timeout=1_000)


def test_a_lease_is_extended_with_a_note(open_page: Any, stage: Stage, slow_run: Run):
    frame = frame_of(open_page(PAGE))
    worker = frame.locator(f"tr[data-lease='{slow_run.lease}']")
    worker.get_by_role("button", name="Extend").click()
    frame.locator("#confirm-ok").click()
    expect(frame.locator("#confirm")).to_be_visible()  # a note is required
    frame.locator("#confirm-note").fill("over lunch")
    frame.locator("#confirm-ok").click()
    expect(frame.locator("#message")).to_contain_text(f"Lease {slow_run.lease} holds for another 60 minutes.")
    (entry,) = stage.audit_log("arcadia_extend_lease")
    assert "over lunch" in entry["extra"]


def test_the_reaper_says_what_it_found(open_page: Any, stage: Stage, slow_run: Run):
    frame = frame_of(open_page(PAGE))
    act(frame, frame.get_by_role("button", name="Run the reaper"), "nightly check")
    expect(frame.locator("#message")).to_contain_text("0 leases ended")
    assert len(stage.audit_log("arcadia_reap")) == 1


def test_a_ray_dashboard_that_goes_away_is_shown_as_away_and_the_rest_stays(
    open_page: Any, stage: Stage, slow_run: Run
):
    frame = frame_of(open_page(PAGE))
    cluster = cluster_of(frame)
    expect(cluster).to_contain_text("healthy")
    stage.dashboard.shutdown()
    stage.dashboard.server_close()
    expect(cluster).to_contain_text("away", timeout=10_000)
    expect(cluster).to_contain_text("No Ray dashboard can be read")
    expect(frame.locator("tr[data-batch]", has_text=slow_run.dag_id)).to_contain_text("running")


def test_a_worker_that_goes_away_is_named_and_is_ended_from_the_page(
    open_page: Any, stage: Stage, slow_run: Run
):
    frame = frame_of(open_page(PAGE))
    worker = frame.locator(f"tr[data-lease='{slow_run.lease}']")
    expect(worker).to_contain_text("ready")
    slow_run.stop_answering()
    expect(worker).to_contain_text("it does not answer", timeout=15_000)
    expect(frame.locator("#away")).to_contain_text("worker")
    expect(frame.locator("tr[data-batch]", has_text=slow_run.dag_id)).to_be_visible()
    act(frame, worker.get_by_role("button", name="End …", exact=True), "it hangs")
    expect(frame.locator("#message")).to_contain_text(
        f"Everything that lease {slow_run.lease} owned has ended."
    )
    expect(worker).to_have_count(0)
    slow_run.wait_for("failed")
    assert slow_run.processes() == []
