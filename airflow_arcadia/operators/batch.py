"""Answer a file of prompts with a ready worker."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.bases.xcom import BaseXCom
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from airflow_arcadia.batch import (
    BatchSpec,
    BatchSummary,
    Endpoint,
    Progress,
    check_input,
    finished_summary,
    run_batch,
)
from airflow_arcadia.batch.output.samples import failed_rows
from airflow_arcadia.batch.progress import History
from airflow_arcadia.batch.spec import BatchOptions
from airflow_arcadia.exceptions import ArcadiaConfigError, ArcadiaError, BatchError
from airflow_arcadia.hooks.arcadia import DEFAULT_CONN_ID, ArcadiaHook, fail_without_retry
from airflow_arcadia.hooks.storage import storage_of_batch, storage_options
from airflow_arcadia.launchers.monitor import WorkerWatch, gone_error
from airflow_arcadia.launchers.renewal import LeaseKeeper
from airflow_arcadia.metrics import BatchMetrics
from airflow_arcadia.operators import _failed_rows
from airflow_arcadia.operators._asset_events import record_answers
from airflow_arcadia.operators._failed_rows_policy import FailedRowsPolicy
from airflow_arcadia.operators._lineage import batch_lineage
from airflow_arcadia.operators._requirements import optional, require_handle
from airflow_arcadia.triggers.batch import ArcadiaBatchInferenceTrigger
from airflow_arcadia.triggers.timeouts import deferral_timeout
from airflow_arcadia.validation import PositiveSeconds, check_literals, is_rendered_later, mapping, parse
from airflow_arcadia.worker import WorkerHandle

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

PROGRESS_KEY = "progress"
"""Key in the task state store under which the last :class:`~airflow_arcadia.batch.Progress` is kept."""
BATCH_KEY = "batch_id"
"""And the id of a batch that the worker runs."""
MAX_RESUBMISSIONS = 3
"""How often a batch is submitted again, within one attempt, to a worker that was started anew."""
DEFAULT_BATCH_TIMEOUT_S = 24 * 3600.0
"""How long to wait for a deferred batch: the completion window of OpenAI's Batch API."""


@dataclass(frozen=True)
class _Intervals:
    """Parameters in seconds, validated when the DAG is parsed."""

    progress_interval: PositiveSeconds
    batch_timeout: PositiveSeconds


class ArcadiaBatchInferenceOperator(BaseOperator):
    """Run every row of ``input`` through the worker and write the answers to ``output``, in input order.

    Rows are OpenAI's batch format (``custom_id``, ``url``, ``body``) or the short forms ``{"prompt": …}``
    and ``{"messages": […]}``, one JSON object a line. The output has OpenAI's batch output format; a row
    that cannot be answered becomes an error row. A retry goes on after the last committed row.

    Assets among its ``outlets`` are updated when the batch is done. The event's ``extra`` has ``output``,
    ``errors``, ``model``, ``rows``, ``ok``, ``failed``, ``prompt_tokens``, ``completion_tokens``,
    ``gpu_seconds``, and ``partial``: whether rows of the input have no answer.

    :param worker: the handle of a ready worker (``worker.handle``), or a list of them.
    :param input: URI or path of the rows, anything fsspec opens.
    :param output: URI or path of the answers.
    :param parameters: sampling parameters for rows that do not set their own, e.g. ``max_tokens``.
    :param options: keys of :class:`~airflow_arcadia.batch.spec.BatchOptions`, e.g. ``max_failed_rows``.
    :param run_in: ``"task"``: this task sends the rows and holds its slot; ``"worker"``: the worker runs the
        batch itself (OpenAI's Batch API) and the task defers, so that no slot is held and a restart of
        Airflow does not touch it. Input and output are then read and written by the worker.
    :param on_failed_rows: what becomes of the task when its finished batch has more failed rows than
        ``failed_rows_accepted``: ``"warn"`` leaves it a success with a warning in the log, ``"fail"`` fails
        it without a retry, ``"skip"`` skips it and the tasks that need all answers. The answers are written
        and the summary is returned in each case; ``options={"max_failed_rows": …}`` ends a batch early.
    :param failed_rows_accepted: how many rows may fail before that.
    :param storage_conn_id: connection to S3 (``aws``), Google Cloud Storage or Azure for input and output;
        without one, this process's own credentials. For ``run_in="worker"`` the launch needs it, too.
    :param progress_interval: seconds between two lines of progress in the log.
    :param batch_timeout: seconds to wait for a batch that the worker runs; an ``execution_timeout`` that ends
        before wins.
    :param arcadia_conn_id: connection of type ``arcadia``.
    """

    template_fields: Sequence[str] = (
        "worker",
        "input",
        "output_uri",
        "parameters",
        "options",
        "run_in",
        "on_failed_rows",
        "failed_rows_accepted",
        "storage_conn_id",
        "arcadia_conn_id",
    )
    template_fields_renderers = {"worker": "json", "parameters": "json", "options": "json"}
    ui_color = "#f0e6f5"

    def __init__(
        self,
        *,
        worker: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        input: str,
        output: str,
        parameters: Mapping[str, Any] | None = None,
        options: BatchOptions | None = None,
        run_in: str = "task",
        on_failed_rows: str = "warn",
        failed_rows_accepted: int | str = 0,
        storage_conn_id: str | None = None,
        progress_interval: float = 5.0,
        batch_timeout: float = DEFAULT_BATCH_TIMEOUT_S,
        arcadia_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.worker = worker
        self.run_in = run_in
        self.on_failed_rows = on_failed_rows
        self.failed_rows_accepted = failed_rows_accepted
        self.storage_conn_id = storage_conn_id
        self.input = input
        # BaseOperator.output is the task's XCom, so the attribute cannot have the parameter's name.
        self.output_uri = output
        self.parameters = parameters
        self.options = options
        given = {"progress_interval": progress_interval, "batch_timeout": batch_timeout}
        intervals = parse(_Intervals, given, "")
        self.progress_interval = intervals.progress_interval
        self.batch_timeout = intervals.batch_timeout
        self.arcadia_conn_id = arcadia_conn_id
        self._stop = threading.Event()
        self._history = History()
        self._summary: BatchSummary | None = None
        if not is_rendered_later(run_in):
            _check_run_in(run_in)
        BatchSpec.check_literals(options)
        check_literals(FailedRowsPolicy, self._policy_values(), "")

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the batch, and return its summary."""
        metrics = _metrics(context)
        with fail_without_retry(), _failure_counted(metrics):
            handles = self._handles()
            spec = self._spec(context)
            _check_run_in(self.run_in)
            parse(FailedRowsPolicy, self._policy_values(), "")
            if self.run_in == "worker":
                # A cleared task needs no worker to find what is answered.
                if (done := self._finished(spec)) is not None:
                    return self._done(done, context)
                self._defer_to(handles, spec, context)
            summary = self._run_here(handles, spec, context, metrics)
        metrics.finished(summary)
        return self._done(summary, context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the wait. A batch that was finished when its time was over, unnoticed, is done."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowException as error:
            # Also what execute_complete raises, which has looked at the output already.
            if hasattr(self, next_method) or (done := self._finished(self._spec(context))) is None:
                raise
            self.log.info("The batch is finished, though nobody waited for it any more: %s", error)
            return self._done(done, context)

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """Return the summary from the trigger's event. Raises when the batch ended before it was done."""
        if event["failed"]:
            # A worker that ended after its last row cannot say so any more, but its output does.
            if (done := self._finished(self._spec(context))) is not None:
                self.log.info("The batch is finished; its worker is not there any more: %s", event["failed"])
                return self._done(done, context)
            self._resubmit(event, context)
            _metrics(context).failed()
            for line in event["failed"].splitlines():  # Airflow shows an exception as one long line
                self.log.error("%s", line)
            kind = AirflowException if event["retryable"] else AirflowFailException
            raise kind(event["failed"])
        summary = BatchSummary.from_dict(event["summary"])
        _metrics(context).finished_in_worker(summary)
        return self._done(summary, context)

    def _resubmit(self, event: Mapping[str, Any], context: Context) -> None:
        """Submit the batch again and wait for it, where its worker was started anew and does not know it."""
        times = event.get("resubmitted")
        if times is None or times >= MAX_RESUBMISSIONS:
            return
        self.log.warning("The worker was started anew: the batch is submitted again, to go on with the rest.")
        with fail_without_retry(), _failure_counted(_metrics(context)):
            self._defer_to(self._handles(), self._spec(context), context, resubmitted=times + 1)

    def on_kill(self) -> None:
        """Stop at the next committed row; a retry goes on from there."""
        self._stop.set()

    def _run_here(
        self, handles: Sequence[WorkerHandle], spec: BatchSpec, context: Context, metrics: BatchMetrics
    ) -> BatchSummary:
        """Run the batch in this task, with the workers watched and their leases renewed."""

        def report(progress: Progress) -> None:
            metrics.progress(progress)
            self._report(progress, context)

        hook = ArcadiaHook(self.arcadia_conn_id)
        try:
            endpoints = asyncio.run(_endpoints(hook, handles))
        except ArcadiaError:
            # The key went with the lease. Another attempt needs no worker to find what is answered.
            if (done := self._finished(spec)) is None:
                raise
            return done
        with (
            WorkerWatch(hook.launchers(), handles) as watch,
            LeaseKeeper(hook.leases, {handle.held_by for handle in handles}, self.log) as renewal,
        ):
            try:
                return run_batch(
                    spec,
                    endpoints,
                    on_progress=report,
                    progress_interval_s=self.progress_interval,
                    should_stop=lambda: self._stop.is_set() or watch.all_lost or renewal.error is not None,
                )
            except BatchError as error:
                if watch.all_lost:
                    raise watch.error() from error
                if renewal.error is not None:
                    raise renewal.error from error
                raise

    def _handles(self) -> list[WorkerHandle]:
        raw = [self.worker] if isinstance(self.worker, Mapping) or not self.worker else list(self.worker)
        return [require_handle(item) for item in raw]

    def _spec(self, context: Context) -> BatchSpec:
        """The batch; one whose failed rows a person asked for once more sends these alone."""
        with fail_without_retry():
            spec = build_spec(
                self.input,
                self.output_uri,
                self._handles(),
                self.parameters,
                self.options,
                optional(self.storage_conn_id),
            )
        ti, run = context["ti"], context["dag_run"]
        index = -1 if ti.map_index is None else ti.map_index
        request = _failed_rows.requested(run.conf, _failed_rows.task_name(ti.task_id, index))
        if request is None:
            return spec
        finished = self._finished(replace(spec, overwrite=False, retry_failed_only=False))
        if not _failed_rows.is_due(request, finished.completion_id if finished else None):
            return spec
        self.log.info("The failed rows are answered again, as was asked for; all other answers are kept.")
        # overwrite would answer all rows again
        return replace(spec, overwrite=False, retry_failed_only=True)

    def _finished(self, spec: BatchSpec) -> BatchSummary | None:
        """The summary of a finished batch, as far as this task can read its output."""
        try:
            return finished_summary(spec)
        except (ArcadiaError, OSError, ImportError) as error:
            # Input and output are the worker's to read: they need not be readable from here.
            self.log.info("Whether the batch is finished cannot be seen from this task: %s", error)
            return None

    def _defer_to(
        self, handles: Sequence[WorkerHandle], spec: BatchSpec, context: Context, resubmitted: int = 0
    ) -> None:
        if len(handles) != 1:
            raise ArcadiaConfigError(
                f"run_in='worker' takes one worker, not {len(handles)}.",
                what_to_do="Use run_in='task' for several.",
            )
        submission = secrets.token_hex(8)
        batch_id = asyncio.run(self._submit(handles[0], spec, submission))
        _keep(context, BATCH_KEY, batch_id)
        self.log.info("%s runs in the worker at %s.", batch_id, handles[0].url)
        self.defer(
            trigger=ArcadiaBatchInferenceTrigger(
                handle=handles[0].to_dict(),
                batch_id=batch_id,
                arcadia_conn_id=self.arcadia_conn_id,
                poll_interval=self.progress_interval,
                resubmitted=resubmitted,
                submission=submission,
            ),
            method_name="execute_complete",
            timeout=deferral_timeout(
                context, self.execution_timeout, timedelta(seconds=float(self.batch_timeout))
            ),
        )

    async def _submit(self, handle: WorkerHandle, spec: BatchSpec, submission: str) -> str:
        hook = ArcadiaHook(self.arcadia_conn_id)
        batches = await hook.remote_batches(handle)
        try:
            return await batches.submit(spec, submission)
        except BatchError as error:
            seen = await hook.launcher(handle.launcher).observe(handle)
            if seen.alive is False:
                raise gone_error(handle.name, seen) from error
            raise

    def get_openlineage_facets_on_start(self) -> OperatorLineage[Any, Any]:
        """Input and output, for Airflow's OpenLineage provider."""
        return batch_lineage(self.input, self.output_uri, None)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Input, output with its rows, model and tokens, for Airflow's OpenLineage provider."""
        return batch_lineage(self.input, self.output_uri, self._summary)

    def _done(self, summary: BatchSummary, context: Context) -> dict[str, Any]:
        self._summary = summary
        limit = BatchSpec.parse(self.options, input=self.input, output=self.output_uri, model="").limit
        record_answers(context, self.outlets, summary, limit)
        self.log.info(
            "%d of %d rows answered, %d failed, in %.1f s (%.0f tokens/s): %s",
            summary.ok,
            summary.rows,
            summary.failed,
            summary.seconds,
            summary.tokens_per_s,
            summary.output,
        )
        if summary.failed:
            self._warn(summary)
        returned = summary.to_dict()
        ended = parse(FailedRowsPolicy, self._policy_values(), "").ends_task(summary)
        if ended is not None:
            # An exception returns nothing, and the answers are there.
            context["ti"].xcom_push(key=BaseXCom.XCOM_RETURN_KEY, value=returned)
            raise ended
        return returned

    def _policy_values(self) -> dict[str, Any]:
        return {"on_failed_rows": self.on_failed_rows, "failed_rows_accepted": self.failed_rows_accepted}

    def _warn(self, summary: BatchSummary) -> None:
        self.log.warning("%d of %d rows failed: %s", summary.failed, summary.rows, summary.errors)
        if summary.errors is None:
            return
        try:
            lines = failed_rows(summary.errors, storage_options(optional(self.storage_conn_id)))
        except Exception as error:  # noqa: BLE001 - the worker's storage need not be readable from this task
            lines = [f"The error rows cannot be read from this task: {error}"]
        for line in lines:
            self.log.warning("%s", line)

    def _report(self, progress: Progress, context: Context) -> None:
        self.log.info("%s", progress)
        self._history.add(time.time(), progress)
        _keep(context, PROGRESS_KEY, {**progress.to_dict(), "history": self._history.points})


def _metrics(context: Context) -> BatchMetrics:
    ti = context["ti"]
    return BatchMetrics({"dag_id": ti.dag_id, "task_id": ti.task_id})


@contextlib.contextmanager
def _failure_counted(metrics: BatchMetrics) -> Iterator[None]:
    """Count an attempt that ends with an error; a deferral is none."""
    try:
        yield
    except (ArcadiaError, AirflowFailException):
        metrics.failed()
        raise


async def _endpoints(hook: ArcadiaHook, handles: Sequence[WorkerHandle]) -> list[Endpoint]:
    return list(await asyncio.gather(*(hook.endpoint(handle) for handle in handles)))


def _keep(context: Context, key: str, value: Any) -> None:
    """Keep a value beside the task for the UI: in its task state store, or before Airflow 3.3 as an XCom."""
    store: Any = context.get("task_state_store")
    if store is not None:
        store.set(key, value)
    else:
        context["ti"].xcom_push(key=key, value=value)


class ArcadiaCheckBatchInputOperator(BaseOperator):
    """Validate the input of batches before a worker is launched and a GPU is spent.

    :param batches: one mapping per batch with ``input``, ``output`` and, where they matter, ``parameters``,
        ``options`` and ``storage_conn_id``, as :class:`ArcadiaBatchInferenceOperator` takes them.
    """

    template_fields: Sequence[str] = ("batches",)
    template_fields_renderers = {"batches": "json"}
    ui_color = "#f0e6f5"

    def __init__(self, *, batches: Sequence[Mapping[str, Any]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.batches = batches
        if isinstance(batches, (list, tuple)):
            for batch in batches:
                BatchSpec.check_literals(batch.get("options") if isinstance(batch, Mapping) else None)

    def execute(self, context: Context) -> list[int]:
        """Check them all, and return the number of rows of each."""
        with fail_without_retry():
            rows = [
                check_input(
                    build_spec(
                        batch["input"],
                        batch["output"],
                        [],
                        batch.get("parameters"),
                        batch.get("options"),
                        optional(batch.get("storage_conn_id")),
                    )
                )
                for batch in self.batches
            ]
        self.log.info("Rows to answer: %s", ", ".join(map(str, rows)))
        return rows


def _check_run_in(run_in: str) -> None:
    if run_in not in {"task", "worker"}:
        raise ArcadiaConfigError(f"run_in is {run_in!r}.", what_to_do="Use 'task' or 'worker'.")


def build_spec(  # noqa: PLR0917 - as the operators have them
    input_uri: str,
    output_uri: str,
    handles: Sequence[WorkerHandle],
    parameters: Mapping[str, Any] | None,
    options: Mapping[str, Any] | None,
    storage_conn_id: str | None = None,
) -> BatchSpec:
    """The engine's spec. Raises :class:`ArcadiaConfigError` when the handles or options do not fit."""
    given = mapping(parameters, "parameters")
    models = sorted({handle.served_model_name for handle in handles})
    if len(models) > 1:
        raise ArcadiaConfigError(
            f"The workers serve different models: {', '.join(models)}.",
            what_to_do="Give one batch workers of one model.",
        )
    return BatchSpec.parse(
        options,
        input=input_uri,
        output=output_uri,
        model=models[0] if models else "",
        # A form leaves what was not filled in as null: that means "the model's own default".
        parameters={key: value for key, value in given.items() if value is not None},
        model_identity=", ".join(sorted({handle.model_identity for handle in handles} - {""})),
        # For the cost line; an option of the user's wins.
        num_gpus=sum(handle.num_gpus for handle in handles),
        storage=storage_of_batch(storage_conn_id, input_uri, output_uri),
    )
