"""The page's own small web application, mounted into Airflow's API server.

Every route needs Airflow's login. What belongs to a DAG is shown to, and can be changed by, whoever may read,
or change, that DAG. Changes are POSTed as JSON with a header that no form of another site can send.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Query
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from airflow_arcadia.batch.output import samples
from airflow_arcadia.exceptions import ArcadiaError
from airflow_arcadia.hooks.storage import storage_options
from airflow_arcadia.ui import actions, database, view
from airflow_arcadia.ui.snapshot import Snapshots

STATIC = Path(__file__).parent / "static"
HEADER = "X-Arcadia-Page"
"""A request with a header of its own is never sent by another site's page without Airflow's consent."""


class Lease(BaseModel):
    """An action on what a lease owns."""

    model_config = ConfigDict(extra="forbid")

    connection: str
    lease: str
    note: str = Field(min_length=3, max_length=500)


class Sweep(BaseModel):
    """A run of the reaper."""

    model_config = ConfigDict(extra="forbid")

    note: str = Field(min_length=3, max_length=500)


class Batch(BaseModel):
    """An action on a batch task."""

    model_config = ConfigDict(extra="forbid")

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    note: str = Field(min_length=3, max_length=500)


def may(method: Any, user: Any, dag_id: str | None, entity: DagAccessEntity | None = None) -> bool:
    """Whether the user may do that to the DAG, or to every DAG where ``dag_id`` is None."""
    return bool(
        get_auth_manager().is_authorized_dag(
            method=method, access_entity=entity, details=DagDetails(id=dag_id), user=user
        )
    )


def require(method: Any, user: Any, dag_id: str | None, entity: DagAccessEntity | None = None) -> None:
    """Refuse with 403 what the user may not do."""
    if not may(method, user, dag_id, entity):
        what = f"DAG {dag_id}" if dag_id else "DAGs in general"
        raise HTTPException(403, f"You may not do this: it needs {method} on {what}.")


def from_the_page(page: Annotated[str | None, Header(alias=HEADER)] = None) -> None:
    """Refuse a change that another site's page sent."""
    if page is None:
        raise HTTPException(403, f"Send the header {HEADER} with changes.")


def create_app(snapshots: Snapshots | None = None) -> FastAPI:
    """The application.

    :param snapshots: where the pages' numbers come from.
    """
    app = FastAPI(title="Arcadia", docs_url=None, redoc_url=None, openapi_url=None)
    shared = snapshots or Snapshots()
    app.include_router(_reads(shared))
    app.include_router(_changes(shared))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


def _reads(snapshots: Snapshots) -> APIRouter:
    """The pages, and what they read."""
    app = APIRouter()

    @app.get("/")
    def page() -> FileResponse:
        return _html("index.html")

    @app.get("/batch")
    def batch_page() -> FileResponse:
        return _html("batch.html")

    @app.get("/api/overview")
    async def overview(user: GetUserDep) -> dict[str, Any]:
        """Clusters, workers and batches that the user may see."""
        whole = await run_in_threadpool(snapshots.take)
        return await run_in_threadpool(visible_to, user, whole)

    @app.get("/api/batch")
    def batch(
        user: GetUserDep,
        dag_id: str,
        run_id: str,
        task_id: str,
        map_index: Annotated[int, Query(ge=-1)] = -1,
    ) -> dict[str, Any]:
        """One batch: how far it is and what it did, with its timeline."""
        require("GET", user, dag_id, DagAccessEntity.TASK_INSTANCE)
        try:
            shown = snapshots.batch(dag_id, run_id, task_id, map_index)
        except TimeoutError as error:
            raise HTTPException(503, f"Airflow's database: {error}") from error
        if shown is None:
            raise HTTPException(404, "There is no such batch task.")
        return shown | {"may_change": may("PUT", user, dag_id, DagAccessEntity.TASK_INSTANCE)}

    @app.get("/api/batch/samples")
    def batch_samples(
        user: GetUserDep,
        dag_id: str,
        run_id: str,
        task_id: str,
        map_index: Annotated[int, Query(ge=-1)] = -1,
    ) -> dict[str, Any]:
        """The first answers of a finished batch, beside what went wrong by code."""
        require("GET", user, dag_id, DagAccessEntity.XCOM)
        task = database.batch_task(dag_id, run_id, task_id, map_index)
        if task is None or not isinstance(task.value, dict):
            return {"answers": [], "errors": [], "note": "Answers are shown once the batch is finished."}
        fields = database.rendered(dag_id, run_id, task_id, map_index)
        key = ("samples", dag_id, run_id, task_id, map_index, task.value.get("completion_id"))
        name, value = " ".join(map(str, key)), task.value

        def read() -> dict[str, Any]:
            storage = storage_options(fields.get("storage_conn_id"))
            return samples.of_output(value, fields.get("input"), storage)

        reading = snapshots.sources.read({name: read})[name]
        return reading.value or {"answers": [], "errors": [], "note": reading.error}

    return app


def _changes(snapshots: Snapshots) -> APIRouter:
    """What a person can do from the pages."""
    app = APIRouter(prefix="/api/actions", dependencies=[Depends(from_the_page)])

    @app.post("/end-worker")
    async def end_worker(user: GetUserDep, asked: Lease) -> dict[str, Any]:
        """End everything that the lease owns."""
        return await _on_lease(user, asked, "arcadia_end_worker", actions.end_worker)

    @app.post("/extend-lease")
    async def extend_lease(user: GetUserDep, asked: Lease) -> dict[str, Any]:
        """Renew the lease for its whole duration."""
        return await _on_lease(user, asked, "arcadia_extend_lease", actions.extend_lease)

    @app.post("/reap")
    async def reap(user: GetUserDep, asked: Sweep) -> dict[str, Any]:
        """End what leases that nobody holds any more still own."""
        require("DELETE", user, None)
        database.write_audit_log("arcadia_reap", user.get_name(), {"note": asked.note}, None, None)
        return await _done(actions.reap)

    @app.post("/cancel-batch")
    async def cancel_batch(user: GetUserDep, asked: Batch) -> dict[str, Any]:
        """Stop the batch; what it has committed is kept."""
        return await _on_batch(user, asked, "arcadia_cancel_batch", actions.cancel_batch)

    @app.post("/retry-failed-rows")
    async def retry_failed_rows(user: GetUserDep, asked: Batch) -> dict[str, Any]:
        """Answer the batch's failed rows again; all other answers are kept."""
        return await _on_batch(user, asked, "arcadia_retry_failed_rows", actions.retry_failed_rows)

    async def _on_batch(user: Any, asked: Batch, event: str, act: Any) -> dict[str, Any]:
        require("PUT", user, asked.dag_id, DagAccessEntity.TASK_INSTANCE)
        extra = {"note": asked.note, "task_id": asked.task_id, "map_index": asked.map_index}
        database.write_audit_log(event, user.get_name(), extra, asked.dag_id, asked.run_id)
        key = (asked.dag_id, asked.run_id, asked.task_id, asked.map_index)
        return await _done(lambda: act(*key))

    async def _on_lease(user: Any, asked: Lease, event: str, act: Any) -> dict[str, Any]:
        identity = await run_in_threadpool(lambda: actions.identity_of(asked.connection, asked.lease))
        dag_id, run_id = (identity.dag_id, identity.run_id) if identity else (None, None)
        require("PUT", user, dag_id, DagAccessEntity.RUN)
        extra = {"note": asked.note, "connection": asked.connection, "lease": asked.lease}
        database.write_audit_log(event, user.get_name(), extra, dag_id, run_id)
        return await _done(lambda: act(asked.connection, asked.lease))

    async def _done(act: Any) -> dict[str, Any]:
        try:
            said = await asyncio.wait_for(run_in_threadpool(act), actions.LONGEST_S)
        except ArcadiaError as error:
            raise HTTPException(409, str(error)) from error
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise HTTPException(504, "It takes longer than expected and goes on; look again soon.") from error
        snapshots.sources.forget()
        return {"said": said}

    return app


def visible_to(user: Any, whole: dict[str, Any]) -> dict[str, Any]:
    """The snapshot without what belongs to DAGs that the user may not read, and what the user may change.

    A lease that names no DAG (it is unreadable, or gone) is shown: its GPUs may be leaking.
    """
    allowed = get_auth_manager().get_authorized_dag_ids(user=user)
    leases = [lease for lease in whole["leases"] if lease["dag_id"] is None or lease["dag_id"] in allowed]
    batches = [batch for batch in whole["batches"] if batch["dag_id"] in allowed]
    hidden = len(whole["leases"]) - len(leases)
    shown = {item["dag_id"] for item in (*leases, *batches)}
    may_run = {dag_id: may("PUT", user, dag_id, DagAccessEntity.RUN) for dag_id in shown}
    may_clear = {dag_id: may("PUT", user, dag_id, DagAccessEntity.TASK_INSTANCE) for dag_id in shown}
    return {
        **whole,
        "leases": [{**lease, "may_change": may_run[lease["dag_id"]]} for lease in leases],
        "batches": [{**batch, "may_change": may_clear[batch["dag_id"]]} for batch in batches],
        "held": view.held_gpus(leases) | {"hidden": hidden},
        "may_reap": may("DELETE", user, None),
    }


def _html(name: str) -> FileResponse:
    headers = {
        # Shown in a frame of Airflow's own origin, and loading nothing from elsewhere.
        "Content-Security-Policy": "default-src 'self'; frame-ancestors 'self'; object-src 'none'",
        "Cache-Control": "no-cache",
    }
    return FileResponse(STATIC / name, media_type="text/html; charset=utf-8", headers=headers)
