"""The page's routes: who may see and do what. The browser is not needed for that."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.api_fastapi.core_api.security import get_user
from fastapi.testclient import TestClient

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.lease import Identity
from airflow_arcadia.ui import actions, app, database
from airflow_arcadia.ui.cache import Sources
from airflow_arcadia.ui.view import Task

LEASES = [
    {"lease": "a", "dag_id": "mine", "workers": [], "attention": False, "since": 1.0},
    {"lease": "b", "dag_id": "theirs", "workers": [], "attention": False, "since": 1.0},
    {"lease": "c", "dag_id": None, "workers": [], "attention": True, "since": 1.0},
]
BATCHES = [{"dag_id": "mine", "task_id": "answer"}, {"dag_id": "theirs", "task_id": "answer"}]
SNAPSHOT = {"leases": LEASES, "batches": BATCHES, "held": {}}
HEADERS = {"X-Arcadia-Page": "1"}
NOTE = {"note": "it hangs"}


class AuthManager:
    """Grants some methods on some DAGs."""

    def __init__(self, *granted: tuple[str, str | None]) -> None:
        self.granted = set(granted)

    def is_authorized_dag(self, *, method: str, access_entity: Any, details: Any, user: Any) -> bool:
        return (method, details.id) in self.granted

    def get_authorized_dag_ids(self, *, user: Any) -> set[str]:
        return {str(dag) for method, dag in self.granted if method == "GET"}


class Page:
    """The application as one user has it, and what was done and written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *granted: tuple[str, str | None]) -> None:
        self.done: list[Any] = []
        self.log: list[tuple[Any, ...]] = []
        snapshots = SimpleNamespace(take=lambda: SNAPSHOT, batch=lambda *key: BATCHES[0], sources=Sources())
        made = app.create_app(snapshots)  # type: ignore[arg-type]
        made.dependency_overrides[get_user] = lambda: SimpleNamespace(get_name=lambda: "ada")
        monkeypatch.setattr(app, "get_auth_manager", lambda: AuthManager(*granted))
        monkeypatch.setattr(database, "write_audit_log", lambda *words: self.log.append(words))
        monkeypatch.setattr(actions, "identity_of", lambda *_: Identity("mine", "run", "g"))
        for name in ("end_worker", "extend_lease", "cancel_batch", "retry_failed_rows", "reap"):
            monkeypatch.setattr(actions, name, lambda *words, name=name: self._do(name, *words))
        self.client = TestClient(made)

    def _do(self, *words: Any) -> str:
        self.done.append(words)
        return "done"

    def post(self, action: str, headers: dict[str, str] | None = None, **body: Any) -> Any:
        return self.client.post(f"/api/actions/{action}", json=body, headers=HEADERS | (headers or {}))


def test_only_what_belongs_to_readable_dags_is_shown_and_the_rest_is_counted(monkeypatch):
    shown = Page(monkeypatch, ("GET", "mine")).client.get("/api/overview").json()
    assert [lease["lease"] for lease in shown["leases"]] == ["a", "c"]
    assert [batch["dag_id"] for batch in shown["batches"]] == ["mine"]
    assert shown["held"]["hidden"] == 1


def test_without_a_login_nothing_is_shown(monkeypatch):
    page = Page(monkeypatch)
    page.client.app.dependency_overrides.clear()
    assert page.client.get("/api/overview").status_code == 401


def test_whoever_may_only_read_a_dag_cannot_end_its_worker(monkeypatch):
    page = Page(monkeypatch, ("GET", "mine"))
    answer = page.post("end-worker", connection="c", lease="a", **NOTE)
    assert answer.status_code == 403
    assert (page.done, page.log) == ([], [])


def test_an_action_is_done_and_its_note_is_in_the_audit_log(monkeypatch):
    page = Page(monkeypatch, ("PUT", "mine"))
    assert page.post("end-worker", connection="c", lease="a", **NOTE).json() == {"said": "done"}
    assert page.done == [("end_worker", "c", "a")]
    ((event, owner, extra, dag_id, run_id),) = page.log
    assert (event, owner, dag_id, run_id) == ("arcadia_end_worker", "ada", "mine", "run")
    assert extra["note"] == "it hangs"


def test_an_action_without_a_note_is_refused(monkeypatch):
    page = Page(monkeypatch, ("PUT", "mine"))
    assert page.post("extend-lease", connection="c", lease="a", note=" ").status_code == 422
    assert page.done == []


def test_another_sites_page_cannot_send_an_action(monkeypatch):
    page = Page(monkeypatch, ("PUT", "mine"))
    body = {"connection": "c", "lease": "a", **NOTE}
    assert page.client.post("/api/actions/end-worker", json=body).status_code == 403
    assert page.done == []


def test_a_lease_that_names_no_dag_needs_the_right_on_all_dags(monkeypatch):
    page = Page(monkeypatch, ("PUT", "mine"))
    monkeypatch.setattr(actions, "identity_of", lambda *_: None)
    assert page.post("end-worker", connection="c", lease="torn", **NOTE).status_code == 403


def test_what_an_action_cannot_do_is_told_in_words(monkeypatch):
    page = Page(monkeypatch, ("PUT", "mine"))

    def refuse(*_: Any) -> str:
        raise ArcadiaConfigError("There is no lease a.", what_to_do="Nothing is held under it.")

    monkeypatch.setattr(actions, "extend_lease", refuse)
    answer = page.post("extend-lease", connection="c", lease="a", **NOTE)
    assert (answer.status_code, answer.json()["detail"]) == (
        409,
        "There is no lease a. Nothing is held under it.",
    )


def test_the_reaper_needs_the_right_to_delete_dags(monkeypatch):
    assert Page(monkeypatch, ("PUT", None)).post("reap", **NOTE).status_code == 403
    assert Page(monkeypatch, ("DELETE", None)).post("reap", **NOTE).json() == {"said": "done"}


def test_one_batch_is_shown_to_whoever_may_read_its_tasks(monkeypatch):
    where = {"dag_id": "mine", "run_id": "run", "task_id": "answer"}
    assert Page(monkeypatch).client.get("/api/batch", params=where).status_code == 403
    shown = Page(monkeypatch, ("GET", "mine")).client.get("/api/batch", params=where).json()
    assert shown == {**BATCHES[0], "may_change": False}


def test_the_answers_of_a_batch_are_shown_beside_their_prompts(monkeypatch, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "Hello"}\n')
    line = {"custom_id": "row-1", "response": {"body": {"choices": [{"text": "Hi"}]}}, "error": None}
    (tmp_path / "out.jsonl").write_text(json.dumps(line) + "\n")
    summary = {"output": str(tmp_path / "out.jsonl"), "errors": None}
    task = Task("mine", "run", "answer", -1, "O", "success", value=summary)
    monkeypatch.setattr(database, "batch_task", lambda *_: task)
    monkeypatch.setattr(database, "rendered", lambda *_: {"input": str(tmp_path / "in.jsonl")})
    where = {"dag_id": "mine", "run_id": "run", "task_id": "answer"}
    assert Page(monkeypatch).client.get("/api/batch/samples", params=where).status_code == 403
    shown = Page(monkeypatch, ("GET", "mine")).client.get("/api/batch/samples", params=where).json()
    assert [(one["prompt"], one["text"]) for one in shown["answers"]] == [("Hello", "Hi")]


def test_the_page_is_told_what_its_user_may_change(monkeypatch):
    shown = Page(monkeypatch, ("GET", "mine"), ("PUT", "mine")).client.get("/api/overview").json()
    assert {lease["lease"]: lease["may_change"] for lease in shown["leases"]} == {"a": True, "c": False}
    assert [batch["may_change"] for batch in shown["batches"]] == [True]
    assert shown["may_reap"] is False


@pytest.mark.parametrize("action", ["cancel-batch", "retry-failed-rows"])
def test_an_action_on_a_batch_needs_the_right_to_change_its_tasks(monkeypatch, action):
    batch = {"dag_id": "mine", "run_id": "run", "task_id": "answer", **NOTE}
    refused = Page(monkeypatch, ("GET", "mine"))
    assert refused.post(action, **batch).status_code == 403
    assert (refused.done, refused.log) == ([], [])
    page = Page(monkeypatch, ("PUT", "mine"))
    assert page.post(action, **batch).json() == {"said": "done"}
    name = action.replace("-", "_")
    assert page.done == [(name, "mine", "run", "answer", -1)]
    assert (page.log[0][0], page.log[0][2]["note"]) == (f"arcadia_{name}", "it hangs")


@pytest.mark.parametrize(
    "path",
    ["/", "/batch", *(f"/static/{file.name}" for file in sorted(app.STATIC.iterdir()))],
)
def test_the_pages_and_what_they_load_are_served(monkeypatch, path):
    assert Page(monkeypatch).client.get(path).status_code == 200


def test_the_pages_load_nothing_from_elsewhere():
    for file in app.STATIC.iterdir():
        text = file.read_text()
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text
        assert "innerHTML" not in text
