"""Somebody who may only look, on an Airflow that is served below a path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.stage import PREFIX, Run, Stage, api_server_for_viewers

expect = pytest.importorskip("playwright.sync_api", reason="make setup installs Playwright").expect

pytestmark = [pytest.mark.airflow, pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def server(stage: Stage) -> Iterator[tuple[str, str]]:
    """URL of the second API server, and the viewer's password."""
    with api_server_for_viewers(stage) as running:
        yield running


@pytest.fixture
def viewer(open_page: Any, server: tuple[str, str]) -> Any:
    """A page of the viewer, logged in by the form."""
    url, password = server
    page = open_page("/", url=url)
    page.locator("[name=username]").fill("vera")
    page.locator("[name=password]").fill(password)
    page.locator("[name=password]").press("Enter")
    expect(page.get_by_role("button", name="Browse")).to_be_visible()
    return page


def test_a_viewer_sees_everything_and_can_change_nothing(viewer: Any, server: tuple[str, str], slow_run: Run):
    url, _ = server
    viewer.goto(f"{url}/plugin/arcadia")
    frame = viewer.frame_locator("iframe")
    batch = frame.locator("tr[data-batch]", has_text=slow_run.dag_id)
    expect(batch).to_contain_text("running")
    expect(frame.locator(f"tr[data-lease='{slow_run.lease}']")).to_contain_text("ready")
    for name in ("End", "Extend", "Cancel", "Retry", "Run the reaper"):
        expect(frame.get_by_role("button", name=name)).to_have_count(0)
    where = {"dag_id": slow_run.dag_id, "run_id": slow_run.run_id, "task_id": "qwen.answer"}
    lease = {"connection": "arcadia_default", "lease": slow_run.lease}
    for action, body in (
        ("end-worker", lease),
        ("extend-lease", lease),
        ("cancel-batch", where),
        ("retry-failed-rows", where),
        ("reap", {}),
    ):
        answer = viewer.request.post(
            f"{url}/arcadia/api/actions/{action}",
            data={**body, "note": "let me"},
            headers={"X-Arcadia-Page": "1"},
        )
        assert (action, answer.status) == (action, 403)
    assert slow_run.state == "running"


def test_below_a_path_links_lead_to_airflows_own_pages(viewer: Any, server: tuple[str, str], slow_run: Run):
    url, _ = server
    viewer.goto(f"{url}/plugin/arcadia")
    batch = viewer.frame_locator("iframe").locator("tr[data-batch]", has_text=slow_run.dag_id)
    batch.get_by_role("link", name="qwen.answer").click()
    viewer.wait_for_url(f"{url}/dags/{slow_run.dag_id}/runs/**")
    # The tab: the link of the same name in the task's details opens a window of its own.
    tab = viewer.locator("a[href$='qwen.answer/plugin/arcadia-batch']:not([target=_blank])")
    tab.first.click()
    expect(viewer.frame_locator("iframe").locator(".facts")).to_contain_text("/ 3,000")
    assert PREFIX in viewer.url


def test_without_a_login_nothing_is_told(browser: Any, server: tuple[str, str]):
    url, _ = server
    context = browser.new_context()
    try:
        assert context.request.get(f"{url}/arcadia/api/overview").status == 401
    finally:
        context.close()
