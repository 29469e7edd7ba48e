"""One Airflow and one browser for all of the browser's tests."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import WINDOW, chromium, executable
from tests.browser.stage import Run, Stage, browser_stage
from tests.conftest import ROOT

PATIENCE_MS = 45_000
"""How long to wait for what a page is to show."""
IMAGES = ROOT / "docs" / "images"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium; tests that need it are skipped where there is none."""
    pytest.importorskip("playwright.sync_api", reason="make setup installs Playwright")
    if executable() is None:
        pytest.skip("no chromium on PATH: make chromium installs Debian's, or set ARCADIA_CHROMIUM")
    expect = importlib.import_module("playwright.sync_api").expect
    expect.set_options(timeout=PATIENCE_MS)
    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def stage(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A whole Airflow."""
    with browser_stage(tmp_path_factory.mktemp("browser") / "stage") as running:
        yield running


@pytest.fixture(scope="session")
def slow_run(stage: Stage) -> Run:
    """A run whose batch is answering for as long as the tests take."""
    run = stage.trigger("nightly_answers")
    run.wait_for_rows()
    return run


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any, stage: Stage) -> Iterator[Open]:
    """Opens a path of Airflow in a window of its own: ``open_page("/dags", theme="dark")``."""
    contexts = []

    def open_(path: str, *, theme: str = "light", url: str | None = None) -> Any:
        context = browser.new_context(viewport=WINDOW, color_scheme=theme)
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script(f"localStorage.setItem('theme', '{theme}')")
        page = context.new_page()
        page.goto(f"{url or stage.airflow.url}{path}")
        return page

    yield open_
    for context in contexts:
        context.close()


@pytest.fixture
def picture() -> Callable[[Any, str], None]:
    """Takes the pictures of the documentation, where ``ARCADIA_SCREENSHOTS`` is set."""

    def take(page: Any, name: str) -> None:
        if os.environ.get("ARCADIA_SCREENSHOTS"):
            path: Path = IMAGES / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=str(path))

    return take
