"""arcadia-config: what is accepted, what is refused and how it is said."""

import pytest

from airflow_arcadia.config import ArcadiaConfig
from airflow_arcadia.exceptions import ArcadiaConfigError

TWO = """
gateway:
  apiServer: http://fastchat:8000/v1
  controller: http://fastchat:21001
rayClusters:
- name: 3090-2-GPUs
  headAddress: raycluster-kuberay-head-svc.kuberay-system.svc:6379
  pythonVersion: 3.9.18
- name: a100
  headAddress: 10.0.0.7
  dashboardHost: 10.0.0.8:9000
  rayVersion: 2.60.0
"""


def test_arcadias_own_example_is_read_whole():
    config = ArcadiaConfig.from_yaml(TWO)
    assert config.gateway.controller == "http://fastchat:21001"
    first, second = config.ray_clusters
    assert first.python_version == "3.9.18"
    assert first.dashboard_url == "http://raycluster-kuberay-head-svc.kuberay-system.svc:8265"
    assert second.head_address == "10.0.0.7:6379"
    assert second.dashboard_url == "http://10.0.0.8:9000"


def test_keys_of_arcadias_other_components_are_accepted():
    text = "systemDatasource: {kind: Datasource}\nembedder: {}\nvectorStore: {}\nrerank: {}\nrayClusters: []"
    assert ArcadiaConfig.from_yaml(text).ray_clusters == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "rayClusters: [{name: a, headAdress: h}]",
            r"rayClusters\[0\].*headAdress.*Did you mean 'headAddress'",
        ),
        ("rayCluster: []", "Did you mean 'rayClusters'"),
        ("gateway: {kontroller: x}", "Did you mean 'controller'"),
        ("rayClusters: [{headAddress: h}]", r"rayClusters\[0\] has no name"),
        ("rayClusters: [{name: a}]", r"rayClusters\[0\] has no headAddress"),
        ("rayClusters: [{name: a, headAddress: 'h:x'}]", "not host:port"),
        ("rayClusters: [{name: a, headAddress: h}, {name: a, headAddress: g}]", "'a' twice"),
        ("rayClusters: {name: a}", "not a list"),
        ("rayClusters: [a]", "not a mapping"),
        ("rayClusters: [{name: [a], headAddress: h}]", "not text"),
        ("rayClusters: [", "not valid YAML"),
        ("- a", "not a mapping"),
        ("{}\n---\n{}", "has 2 documents"),
        ("gateway: {controller: [a]}", r"gateway\.controller is a list, not text"),
        ("rayClusters: [{name: '', headAddress: h}]", r"rayClusters\[0\]\.name is empty"),
        (
            "rayClusters: [{name: a, headAddress: h, pythonVersion: 3.10}]",
            r"rayClusters\[0\]\.pythonVersion is 3\.1, a number.* 3\.10 becomes 3\.1\. Put it in quotes",
        ),
        ("rayClusters: [{name: a, headAddress: 10:30}]", r"headAddress is 630, a number and not text"),
        ("gateway: {controller: a}\ngateway: {controller: b}", "the key 'gateway' is there twice"),
        ("rayClusters: [{name: a, headAddress: h, name: b}]", "the key 'name' is there twice"),
        (f"gateway: {'[' * 60}{']' * 60}", "nested more than 50 levels deep"),
        (f"gateway: {'[' * 5000}", "nested more than 50 levels deep"),
        (f"config: {'x' * 1_100_000}", "more than 1048576"),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, said: str):
    with pytest.raises(ArcadiaConfigError, match=said):
        ArcadiaConfig.from_yaml(text)


@pytest.mark.parametrize("chosen", [1, "1", "a100"])
def test_a_cluster_is_chosen_by_index_or_by_name(chosen: int | str):
    index, cluster = ArcadiaConfig.from_yaml(TWO).select(chosen)
    assert (index, cluster.name) == (1, "a100")


@pytest.mark.parametrize("chosen", [2, "7", "b100", -1, True])
def test_a_cluster_that_does_not_exist_is_answered_with_those_that_do(chosen: int | str):
    with pytest.raises(ArcadiaConfigError, match=r"0: 3090-2-GPUs, 1: a100"):
        ArcadiaConfig.from_yaml(TWO).select(chosen)


def test_an_empty_list_says_so():
    with pytest.raises(ArcadiaConfigError, match="rayClusters is empty"):
        ArcadiaConfig().select(0)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ArcadiaConfigError, match=r"nowhere\.yaml"):
        ArcadiaConfig.from_file(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("address", "loopback"), [("127.0.0.1:1", True), ("localhost", True), ("h:1", False)]
)
def test_only_this_machines_own_address_is_loopback(address: str, loopback: bool):
    config = ArcadiaConfig.parse({"rayClusters": [{"name": "a", "headAddress": address}]})
    assert config.ray_clusters[0].is_loopback is loopback


def test_many_clusters_are_checked_for_equal_names_in_one_pass():
    clusters = [{"name": f"c{number}", "headAddress": "h"} for number in range(20_000)]
    with pytest.raises(ArcadiaConfigError, match="'c7' twice"):
        ArcadiaConfig.parse({"rayClusters": [*clusters, clusters[7]]})


def test_quoted_versions_keep_their_digits():
    text = "rayClusters: [{name: a, headAddress: h, pythonVersion: '3.10', rayVersion: ''}]"
    cluster = ArcadiaConfig.from_yaml(text).ray_clusters[0]
    assert (cluster.python_version, cluster.ray_version) == ("3.10", None)
