"""``make up`` as a new user has it: a run triggered from the form, on a real engine over two Ray workers.

It takes minutes and the documentation's pictures, so it runs with ``ARCADIA_SCREENSHOTS`` set.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

pytest.importorskip("playwright.sync_api", reason="make setup installs Playwright")

# A module that skips itself while it is imported leaves half of itself behind for the next import.
from tests.browser.test_forms import DAG_ID, open_trigger_form
from tests.browser.test_pages import frame_of

expect = pytest.importorskip("playwright.sync_api").expect

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.browser,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not os.environ.get("ARCADIA_SCREENSHOTS"), reason="set ARCADIA_SCREENSHOTS=1"),
]


@pytest.fixture(scope="module")
def url(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the local Airflow that ``make up`` starts."""
    folder = tmp_path_factory.mktemp("demo") / "up"
    stack = [sys.executable, "-m", "demo.stack"]
    said = subprocess.run(
        [*stack, "up", "--folder", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    try:
        assert said.returncode == 0, said.stderr
        found = re.search(r"Airflow is at (\S+)", said.stdout)
        assert found is not None
        yield found[1]
    finally:
        subprocess.run([*stack, "down", "--folder", str(folder)], cwd=ROOT, check=True)


def test_a_run_of_the_demo_is_triggered_from_the_form_and_watched_live(
    open_page: Any, url: str, picture: Any, tmp_path: Path
):
    page = open_page("/connections", url=url)
    page.get_by_role("row", name="arcadia_default").get_by_role("button", name="Test Connection").click()
    toast = page.get_by_role("status").filter(has_text="Test Connection Successful")
    expect(toast).to_contain_text(
        "Ray cluster local is not running; create='if_missing' starts a local head."
    )

    page.goto(f"{url}/dags/{DAG_ID}")
    form = open_trigger_form(page)
    form.get_by_test_id("trigger-dag-submit").click()
    expect(form).to_be_hidden()

    page.get_by_role("button", name="Browse").click()
    page.get_by_role("menuitem", name="Arcadia").click()
    frame = frame_of(page)
    worker = frame.locator("tr[data-lease]")
    expect(worker).to_contain_text("TP 2", timeout=60_000)
    batch = frame.locator("tr[data-batch]")
    expect(batch.locator("svg.spark polyline")).to_be_attached(timeout=240_000)
    expect(batch).to_contain_text("running")
    expect(frame.locator("#strip")).to_contain_text("2 GPUs")
    picture(page, "arcadia-page-light")
    dark = open_page("/plugin/arcadia", url=url, theme="dark")
    expect(frame_of(dark).locator("tr[data-batch]")).to_be_visible()
    picture(dark, "arcadia-page-dark")
    tab_url = f"{batch.get_by_role('link').first.get_attribute('href')}/plugin/arcadia-batch"
    tab = open_page(tab_url, url=url, theme="dark")
    expect(frame_of(tab).locator("#throughput svg polyline")).to_be_attached()
    picture(tab, "batch-tab-dark")

    expect(batch).to_contain_text("success", timeout=240_000)
    expect(worker).to_have_count(0, timeout=60_000)
    batch.get_by_role("button", name="Show answers").click()
    expect(frame.locator(".answers pre").nth(1)).not_to_be_empty()
    expect(frame_of(tab).locator(".facts")).to_contain_text("success")
