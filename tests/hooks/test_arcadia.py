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
