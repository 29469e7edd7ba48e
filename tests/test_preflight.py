"""Preflight: what is found before a GPU is spent."""

import json
from pathlib import Path

import pytest

from airflow_arcadia.exceptions import ArcadiaConfigError, RayClusterBusyError, RayClusterUnfitError
from airflow_arcadia.preflight import Versions, check_cluster, possible_sizes, require, require_model

SAME = Versions("2.60.0", "3.11.7")


def test_a_cluster_that_fits_has_no_findings():
    assert check_cluster(SAME, SAME, gpus_total=2, gpus_free=2, num_gpus=2) == []


@pytest.mark.parametrize(
    ("worker", "said"),
    [(Versions("2.59.1", "3.11.7"), "Ray 2.59.1"), (Versions("2.60.0", "3.11.9"), "Python 3.11.9")],
)
def test_another_version_down_to_the_patch_will_never_fit(worker: Versions, said: str):
    with pytest.raises(RayClusterUnfitError, match=said):
        require("a", check_cluster(SAME, worker, 2, 2, 2))


def test_a_worker_of_unknown_versions_is_not_judged_by_them():
    assert check_cluster(SAME, None, 2, 2, 2) == []


def test_more_gpus_than_there_are_will_never_fit():
    with pytest.raises(RayClusterUnfitError, match="it has 2 GPUs, NUMBER_GPUS asks for 4"):
        require("a", check_cluster(SAME, SAME, 2, 2, 4))


def test_gpus_in_use_may_become_free():
    with pytest.raises(RayClusterBusyError, match="1 of its 2 GPUs are free"):
        require("a", check_cluster(SAME, SAME, 2, 1, 2))
    assert RayClusterBusyError.retryable
    assert not RayClusterUnfitError.retryable


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(RayClusterUnfitError, match=r"Ray 2\.59\.1.*1 of its 2"):
        require("a", check_cluster(SAME, Versions("2.59.1", "3.11.7"), 2, 1, 2))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "sizes"),
    [
        (9, 3, [1, 3, 9]),
        (32, 8, [1, 2, 4, 8, 16, 32]),
        (12, 4, [1, 2, 4, 12]),
        (32, None, [1, 2, 4, 8, 16, 32]),
    ],
)
def test_the_possible_sizes_follow_from_the_heads(heads: int, kv_heads: int | None, sizes: list[int]):
    assert possible_sizes({"num_attention_heads": heads, "num_key_value_heads": kv_heads}) == sizes


def test_a_model_that_does_not_say_is_not_judged():
    assert possible_sizes({"model_type": "mamba"}) is None


def test_heads_that_cannot_be_divided_name_the_sizes_that_would_do(tmp_path: Path):
    config = {"text_config": {"num_attention_heads": 9, "num_key_value_heads": 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArcadiaConfigError, match=r"9 attention heads and 3 .* Set NUMBER_GPUS to 1, 3 or 9"):
        require_model(str(tmp_path), 2)


def test_a_folder_without_config_json_is_no_model(tmp_path: Path):
    with pytest.raises(ArcadiaConfigError, match=r"has no config\.json"):
        require_model(str(tmp_path), 1)
    with pytest.raises(ArcadiaConfigError, match="is not a folder"):
        require_model(str(tmp_path / "nowhere"), 1)


def test_a_config_json_that_is_no_json_is_named(tmp_path: Path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ArcadiaConfigError, match="cannot be read"):
        require_model(str(tmp_path), 1)


def test_a_repository_id_is_left_to_the_worker():
    require_model("Qwen/Qwen2.5-7B-Instruct", 7)
