"""The hook: what a connection says, and what is said of one that does not say enough."""

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_arcadia.exceptions import ArcadiaConfigError, RayClusterError
from airflow_arcadia.hooks.arcadia import ArcadiaHook, fail_without_retry
from tests.airflow_context import set_connection


def test_the_configuration_is_read_from_a_file_or_from_inline_yaml(tmp_path, monkeypatch):
    file = tmp_path / "arcadia-config.yaml"
    file.write_text("rayClusters: [{name: from-file, headAddress: h}]")
    set_connection(monkeypatch, arcadia_config=str(file))
    assert ArcadiaHook().config.ray_clusters[0].name == "from-file"
    inline = "rayClusters: [{name: inline, headAddress: h}]"
    set_connection(monkeypatch, arcadia_config=str(file), arcadia_config_yaml=inline)
    assert ArcadiaHook().config.ray_clusters[0].name == "inline"


def test_a_connection_without_a_configuration_says_what_to_set(monkeypatch):
    set_connection(monkeypatch)
    with pytest.raises(ArcadiaConfigError, match="arcadia_config"):
        _ = ArcadiaHook().config


def test_a_connection_that_does_not_exist_is_named():
    with pytest.raises(ArcadiaConfigError, match="no connection 'nowhere'"):
        _ = ArcadiaHook("nowhere").config


IN_A_CLUSTER = {"kubernetes_conn_id": "kubernetes_default"}


def test_each_launch_in_a_cluster_has_an_api_key_of_its_own_unless_the_connection_gives_one(monkeypatch):
    set_connection(monkeypatch, **IN_A_CLUSTER)
    first, second = (ArcadiaHook().secrets["api-key"] for _ in range(2))
    assert first != second
    assert min(len(first), len(second)) >= 43, "32 random bytes"
    assert ArcadiaHook().api_key is None
    set_connection(monkeypatch, password="the-key", **IN_A_CLUSTER)
    assert ArcadiaHook().secrets["api-key"] == "the-key"


@pytest.mark.parametrize(
    "extra", [{}, {**IN_A_CLUSTER, "generate_api_key": "False"}, {**IN_A_CLUSTER, "generate_api_key": False}]
)
def test_local_workers_and_those_of_a_connection_that_says_so_have_no_key(monkeypatch, extra):
    set_connection(monkeypatch, **extra)
    assert "api-key" not in ArcadiaHook().secrets


def test_a_setting_that_is_neither_true_nor_false_leaves_no_worker_without_a_key(monkeypatch):
    set_connection(monkeypatch, **IN_A_CLUSTER, generate_api_key="no")
    with pytest.raises(ArcadiaConfigError, match=r"generate_api_key .* is 'no'\. Set it to true or false"):
        _ = ArcadiaHook().secrets


def test_only_what_a_retry_can_mend_is_retried():
    with pytest.raises(RayClusterError), fail_without_retry():
        raise RayClusterError("a", what_to_do="b")
    with pytest.raises(AirflowFailException, match=r"^a b$"), fail_without_retry():
        raise ArcadiaConfigError("a", what_to_do="b")


def test_each_part_of_an_error_is_logged_on_a_line_of_its_own_before_it_is_raised(caplog):
    error = ArcadiaConfigError(
        "It failed; its log ends:\na\nb\n", what_to_do="Do c.", still_running="D runs."
    )
    with pytest.raises(AirflowFailException) as raised, fail_without_retry():
        raise error
    assert [record.message for record in caplog.records] == [
        "It failed; its log ends:",
        "a",
        "b",
        "D runs.",
        "Do c.",
    ]
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__
