"""The group's wiring: setup, order, teardown, and where the handle comes from."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk import DAG, task

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.launchers.pod.settings import PodOptions
from airflow_arcadia.operators.batch import ArcadiaBatchInferenceOperator
from airflow_arcadia.ray_cluster.kuberay.settings import KubeRaySpec
from airflow_arcadia.task_groups.worker import ArcadiaWorkerGroup
from airflow_arcadia.worker import EngineOptions


def batch(task_id: str, worker: ArcadiaWorkerGroup) -> ArcadiaBatchInferenceOperator:
    return ArcadiaBatchInferenceOperator(
        task_id=task_id, worker=worker.handle, input="in.jsonl", output=f"{task_id}.jsonl"
    )


def make(**kwargs: Any) -> tuple[DAG, ArcadiaWorkerGroup]:
    with (
        DAG("dag", schedule=None) as dag,
        ArcadiaWorkerGroup("w", model="org/m", num_gpus=2, **kwargs) as worker,
    ):
        first = batch("first", worker)

        @task
        def report() -> None: ...

        first >> report()
        batch("second", worker)
    return dag, worker


def upstream(dag: DAG, task_id: str) -> set[str]:
    return {name.removeprefix("w.") for name in dag.get_task(f"w.{task_id}").upstream_task_ids}


def test_the_steps_follow_each_other_around_the_users_tasks():
    dag, _ = make()
    assert upstream(dag, "check_input") == {"reserve"}
    assert {"reserve", "check_input"} >= upstream(dag, "provision_ray_cluster") >= {"check_input"}
    assert "provision_ray_cluster" in upstream(dag, "launch_worker")
    assert "launch_worker" in upstream(dag, "model_ready")
    assert upstream(dag, "first") == upstream(dag, "second") == {"model_ready"}
    assert upstream(dag, "teardown_worker") >= {"report", "second"}


def test_only_reserving_is_the_setup_and_the_teardown_decides_the_runs_state():
    dag, worker = make()
    assert [t.task_id for t in dag.tasks if t.is_setup] == ["w.reserve"]
    assert [t.task_id for t in dag.tasks if t.is_teardown] == ["w.teardown_worker"]
    assert worker.teardown.on_failure_fail_dagrun
    assert dag.dagrun_timeout is None


def test_every_batch_that_starts_inside_is_checked_first():
    dag, _ = make()
    batches = dag.get_task("w.check_input").batches
    assert [b["output"] for b in batches] == ["first.jsonl", "second.jsonl"]


def test_inputs_that_a_task_makes_are_not_checked():
    dag, _ = make(check_inputs=False)
    assert "w.check_input" not in dag.task_ids
    assert upstream(dag, "provision_ray_cluster") == {"reserve"}


def test_a_group_without_tasks_still_tears_down():
    with DAG("dag", schedule=None) as dag, ArcadiaWorkerGroup("w", model="org/m"):
        pass
    assert "model_ready" in upstream(dag, "teardown_worker")


def test_an_error_inside_the_group_is_the_one_that_is_seen():
    with pytest.raises(KeyError, match="mine"), DAG("dag", schedule=None), ArcadiaWorkerGroup("w", model="m"):
        raise KeyError("mine")


def test_several_workers_are_launched_side_by_side_and_given_together():
    dag, worker = make(num_workers=2)
    for index in (0, 1):
        assert "provision_ray_cluster" in upstream(dag, f"launch_worker_{index}")
        assert f"launch_worker_{index}" in upstream(dag, f"model_ready_{index}")
    assert upstream(dag, "first") == {"model_ready_0", "model_ready_1"}
    assert len(worker.handle) == 2
    assert dag.get_task("w.provision_ray_cluster").num_workers == 2


def test_the_engine_and_the_startup_timeout_reach_every_launch():
    engine: EngineOptions = {"max_num_seqs": "{{ params.seqs }}", "drain_seconds": 5}
    _, worker = make(num_workers=2, engine=engine, startup_timeout=7200, served_model_name="qwen")
    for launch in worker.launches:
        assert (launch.engine, launch.startup_timeout) == (engine, 7200)
        assert launch.served_model_name == "qwen"
    assert [ready.startup_timeout for ready in worker.ready] == [7200, 7200]


def test_a_created_ray_cluster_is_like_the_workers_pod_unless_told_otherwise():
    pod: PodOptions = {
        "image": "worker:1",
        "model_volume": {"emptyDir": {}},
        "tolerations": [{"key": "gpu"}],
        "node_selector": {"gpu": "a100"},
        "resources": {"limits": {"memory": "8Gi"}},
    }
    _, worker = make(pod=pod, ray_cluster_spec={"image": "nodes:1", "num_gpus": 4})
    spec = KubeRaySpec.parse(worker.provision.spec_for(in_cluster=True))
    assert (spec.image, spec.num_gpus) == ("nodes:1", 4)
    assert (spec.model_volume, spec.tolerations) == (pod["model_volume"], pod["tolerations"])
    assert (spec.node_selector, spec.resources) == ({"gpu": "a100"}, {})
    _, worker = make(pod=pod)
    assert KubeRaySpec.parse(worker.provision.spec_for(in_cluster=True)).image == "worker:1"
    # A local head is made of nothing: it has no image.
    assert worker.provision.spec_for(in_cluster=False) == {}


def test_numbers_given_as_text_are_numbers_where_they_are_used():
    _, worker = make(num_workers="2", startup_timeout="7200", poll_interval="1", teardown_retries="3")
    assert (len(worker.ready), worker.provision.num_workers) == (2, 2)
    assert (worker.ready[0].startup_timeout, worker.ready[0].poll_interval) == (7200.0, 1.0)
    assert worker.teardown.retries == 3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_workers": 0}, "num_workers is 0. Set it to at least 1"),
        ({"num_workers": "{{ params.n }}"}, "num_workers is '{{ params.n }}', not a whole number"),
        ({"startup_timeout": "soon"}, "startup_timeout is 'soon', not a number"),
        ({"engine": {"max_num_seq": 8}}, "engine has the unknown key 'max_num_seq'"),
        ({"pod": {"image_pull_secrets": "regcred"}}, "pod.image_pull_secrets is 'regcred', not a list"),
        ({"custom_resource": {"existing": "maybe"}}, "custom_resource.existing is 'maybe'"),
        ({"ray_cluster_spec": {"gpu_per_node": 1}}, "Did you mean 'gpus_per_node'"),
        ({"ray_cluster_spec": {"num_cpus": "two"}}, "ray_cluster_spec.num_cpus is 'two'"),
        ({"create": "always"}, "create is 'always'"),
    ],
)
def test_a_literal_that_is_not_valid_is_an_error_of_the_dag(wrong: dict[str, Any], said: str):
    with pytest.raises(ArcadiaConfigError) as error:
        make(**wrong)
    assert said in str(error.value)
