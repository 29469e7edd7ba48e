"""``@task.arcadia_batch``: a function makes the rows of a batch, or says where they are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import (
    DecoratedOperator,
    TaskDecorator,
    context_merge,
    determine_kwargs,
    task_decorator_factory,
)

from airflow_arcadia.batch.input.made_rows import write_rows
from airflow_arcadia.hooks.arcadia import fail_without_retry
from airflow_arcadia.hooks.storage import storage_options
from airflow_arcadia.operators._requirements import optional
from airflow_arcadia.operators.batch import ArcadiaBatchInferenceOperator, _keep

if TYPE_CHECKING:
    from airflow.sdk import Context

ROWS_SUFFIX = ".input.jsonl"
"""Added to the output's name: where the rows are written that the function returned."""
INPUT_KEY = "input"
"""Key in the task state store of where the rows are, for the time after a deferral."""


class ArcadiaBatchDecoratedOperator(DecoratedOperator, ArcadiaBatchInferenceOperator):
    """Answer the rows that a function returns, or those of the URI that it returns.

    Rows are mappings as the lines of an input are, or prompts. They are written to ``<output>.input.jsonl``,
    whole, before the first is sent. Another attempt calls the function again, and goes on after the last
    committed row if it returns the same.

    :param python_callable: the function.
    :param op_args: its positional arguments (templated).
    :param op_kwargs: its keyword arguments (templated).

    Further parameters are those of :class:`ArcadiaBatchInferenceOperator`, but ``input``.
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *ArcadiaBatchInferenceOperator.template_fields,
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **ArcadiaBatchInferenceOperator.template_fields_renderers,
    }
    custom_operator_name = "@task.arcadia_batch"
    overwrite_rtif_after_execution = True

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        output: str,
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            # Rendered as the output is; a URI that the function returns takes its place.
            input=f"{output}{ROWS_SUFFIX}",
            output=output,
            **kwargs,
        )

    def execute(self, context: Context) -> dict[str, Any]:
        """Call the function, run the batch, and return its summary."""
        context_merge(context, self.op_kwargs)
        made = self.python_callable(
            *self.op_args, **determine_kwargs(self.python_callable, self.op_args, context)
        )
        with fail_without_retry():
            if isinstance(made, str):
                self.input = made
            else:
                storage = storage_options(optional(self.storage_conn_id))
                count = write_rows(made, self.input, storage)
                self.log.info("%d rows are in %s.", count, self.input)
        _keep(context, INPUT_KEY, self.input)
        return dict(super().execute(context))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the wait, with the input that the function has named."""
        self.input = _kept(context, INPUT_KEY) or self.input
        return super().resume_execution(next_method, next_kwargs, context)


def _kept(context: Context, key: str) -> Any:
    """What ``_keep`` has kept."""
    store: Any = context.get("task_state_store")
    if store is not None:
        return store.get(key)
    ti = context["ti"]
    return ti.xcom_pull(task_ids=ti.task_id, map_indexes=ti.map_index, key=key)


def arcadia_batch_task(
    python_callable: Callable[..., Any] | None = None, multiple_outputs: bool | None = None, **kwargs: Any
) -> TaskDecorator:
    """Make a batch task of a function that returns rows, or the URI of rows.

    :param python_callable: the function.
    :param multiple_outputs: whether each field of the summary is an XCom of its own.
    :param kwargs: parameters of :class:`ArcadiaBatchDecoratedOperator`.
    """
    return task_decorator_factory(
        python_callable=python_callable,
        multiple_outputs=multiple_outputs,
        decorated_operator_class=ArcadiaBatchDecoratedOperator,
        **kwargs,
    )
