"""End, every few minutes, what leases that nobody holds any more still own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_arcadia.exceptions import ArcadiaError, TeardownError
from airflow_arcadia.launchers.reaper import Report
from airflow_arcadia.lease import Identity
from airflow_arcadia.metrics import swept
from airflow_arcadia.reap import environment_connection_ids, lines_of, reap_connection

if TYPE_CHECKING:
    from airflow.sdk import Context


class ArcadiaReapWorkersOperator(BaseOperator):
    """Ends what is owned by leases that lapsed, that were released, or whose run has ended.

    Returns per connection the names of the leases ended and the GPU-hours they were held by nobody. A lease
    that is renewed is never touched, however wrong this machine's clock is by up to two minutes or a third of
    the lease; nor is anything that does not carry this provider's marks.

    :param arcadia_conn_ids: connections of type ``arcadia``; by default every one that an
        ``AIRFLOW_CONN_…`` variable holds. Tasks cannot list the connections of Airflow's database: name those
        here, or run ``python -m airflow_arcadia.reap`` beside Airflow, which finds them all.
    :param report_only: only say what would be ended.
    :param grace: seconds a worker may take to end before it is killed.
    """

    template_fields: Sequence[str] = ("arcadia_conn_ids",)
    ui_color = "#f5e6df"

    def __init__(
        self,
        *,
        arcadia_conn_ids: Sequence[str] = (),
        report_only: bool = False,
        grace: float = 30.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.arcadia_conn_ids = arcadia_conn_ids
        self.report_only = report_only
        self.grace = grace

    def execute(self, context: Context) -> dict[str, Any]:
        """Sweep every connection. Raises :class:`TeardownError` when something could not be ended."""
        ti: Any = context["ti"]

        def run_state(identity: Identity) -> str | None:
            try:
                return str(ti.get_dagrun_state(identity.dag_id, identity.run_id))
            except Exception as error:  # noqa: BLE001 - of the execution API: unknown is never ended
                self.log.info("State of %s/%s is unknown: %s", identity.dag_id, identity.run_id, error)
                return None

        result: dict[str, Any] = {}
        wrong: list[str] = []
        for conn_id in self.arcadia_conn_ids or environment_connection_ids():
            try:
                report = reap_connection(conn_id, run_state, dry_run=self.report_only, grace_s=self.grace)
            except ArcadiaError as error:
                wrong.append(f"{conn_id}: {error}")
                continue
            swept(conn_id, report)
            for line in lines_of(conn_id, report, dry_run=self.report_only):
                self.log.info("%s", line)
            wrong += _wrong(conn_id, report)
            result[conn_id] = {
                "reaped": [item.name for item in report.reaped],
                "gpu_hours": round(report.gpu_hours, 3),
            }
        if wrong:
            raise TeardownError(
                "Not everything that nobody holds any more could be ended.",
                still_running="; ".join(wrong),
                what_to_do="The next sweep tries again; end by hand what stays.",
            )
        return result


def _wrong(conn_id: str, report: Report) -> list[str]:
    left = [f"{conn_id}: {text} of {item.name}" for item in report.reaped for text in item.left]
    return left + [f"{conn_id}: {name}: {why}" for name, why in report.errors.items()]
