"""Settings by type: text of templates becomes what was declared, or an error names the parameter."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import pytest

from airflow_arcadia.batch import BatchSpec
from airflow_arcadia.batch.spec import BatchOptions
from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.launchers.arcadia_worker.settings import ArcadiaWorkerOptions, WorkerResourceSettings
from airflow_arcadia.launchers.pod.settings import PodOptions, PodSettings
from airflow_arcadia.operators._launcher import LaunchRequest
from airflow_arcadia.ray_cluster.kuberay.settings import KubeRayOptions, KubeRaySpec
from airflow_arcadia.validation import (
    Count,
    PositiveSeconds,
    Words,
    check_fields,
    check_literals,
    is_rendered_later,
    mapping,
    parse,
)
from airflow_arcadia.worker import WorkerSpec


@dataclass(frozen=True)
class Settings:
    flag: bool = False
    count: Count = 3
    limit: Count | None = 7
    wait: PositiveSeconds = 2.0
    text: str = "as it is"
    mode: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    words: Words = ()
    anything: Any = None


@dataclass(frozen=True)
class Checked:
    wait: PositiveSeconds

    def __post_init__(self) -> None:
        check_fields(self, "checked")


@pytest.mark.parametrize(
    ("key", "given", "becomes"),
    [
        ("flag", "False", False),
        ("flag", "true", True),
        ("flag", "0", False),
        ("count", " 5 ", 5),
        ("wait", "30", 30.0),
        ("wait", 30, 30.0),
        ("limit", "None", None),
        ("limit", None, None),
        ("text", "5", "5"),
        ("text", "None", "None"),
        ("names", ["a", "b"], ("a", "b")),
        ("names", '["a", "b"]', ("a", "b")),
        ("labels", '{"a": "b"}', {"a": "b"}),
        ("words", "--seed 1 --name 'a b'", ("--seed", "1", "--name", "a b")),
        ("words", ["--seed", "1"], ("--seed", "1")),
        ("anything", "{", "{"),
    ],
)
def test_text_of_a_template_becomes_the_declared_type(key: str, given: object, becomes: object):
    assert getattr(parse(Settings, {key: given}, "settings"), key) == becomes


@pytest.mark.parametrize("nothing", ["", "  ", None])
@pytest.mark.parametrize("key", ["flag", "count", "wait", "mode", "names", "labels", "words"])
def test_what_a_form_left_empty_is_not_set(key: str, nothing: object):
    assert parse(Settings, {key: nothing}, "settings") == Settings()


@pytest.mark.parametrize("raw", [None, "", {}, "{}"])
def test_no_settings_are_the_defaults(raw: object):
    assert parse(Settings, raw, "settings") == Settings()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"flag": "maybe"}, "settings.flag is 'maybe', not true or false. Give true or false."),
        ({"flag": [True]}, "settings.flag is a list, not true or false."),
        ({"count": "1.5"}, "settings.count is '1.5', not a whole number."),
        ({"count": 0}, "settings.count is 0. Set it to at least 1."),
        ({"count": True}, "settings.count is True, not a number."),
        ({"wait": "soon"}, "settings.wait is 'soon', not a number."),
        ({"wait": "nan"}, "settings.wait is 'nan', not a finite number."),
        ({"wait": float("inf")}, "settings.wait is inf, not a finite number."),
        ({"wait": "-1"}, "settings.wait is '-1'. Set it to above 0."),
        ({"text": 3.1}, "settings.text is 3.1, a number and not text."),
        ({"mode": "c"}, "settings.mode is 'c'. Use 'a' or 'b'."),
        ({"names": "regcred"}, "settings.names is 'regcred', not a list."),
        ({"names": [1]}, r"settings.names[0] is 1, a number and not text."),
        ({"labels": "a=b"}, "settings.labels is 'a=b', not a mapping."),
        ({"labels": {"a": 1}}, "settings.labels.a is 1, a number and not text."),
        ({"words": "a 'b"}, "No closing quotation: quotes must come in pairs"),
        ({"cuont": 1}, "settings has the unknown key 'cuont'. Did you mean 'count'?"),
        ({"zzz": 1}, "Valid keys: flag, count,"),
        ({"count": 0, "flag": "maybe"}, "count is 0. settings.flag is 'maybe'"),
        ("{'flag': True}", "render_template_as_native_obj=True"),
        (["flag"], "settings is a list, not a mapping."),
    ],
)
def test_what_does_not_fit_is_named_with_its_parameter(raw: object, said: str):
    with pytest.raises(ArcadiaConfigError) as error:
        parse(Settings, raw, "settings")
    assert said in str(error.value)


def test_a_value_that_may_be_a_secret_is_not_repeated():
    with pytest.raises(ArcadiaConfigError) as error:
        parse(Settings, {"labels": {"HF_TOKEN": 12345}}, "settings")
    assert "HF_TOKEN" in str(error.value)
    assert "12345" not in str(error.value)


def test_what_is_missing_is_named():
    with pytest.raises(ArcadiaConfigError, match="checked has no wait"):
        parse(Checked, {}, "checked")


def test_whoever_makes_a_checked_class_gets_the_declared_types():
    assert Checked("30").wait == 30.0  # type: ignore[arg-type]
    with pytest.raises(ArcadiaConfigError, match=r"checked\.wait is 'x', not a number"):
        Checked("x")  # type: ignore[arg-type]


class LaterValue:
    """As an XComArg: not known when the DAG is parsed."""


@pytest.mark.parametrize("later", ["{{ params.x }}", "{% if a %}1{% endif %}", ["{{ ds }}"], LaterValue()])
def test_a_template_is_left_to_the_execution(later: object):
    assert is_rendered_later(later)
    check_literals(Settings, {"count": later}, "settings")
    check_literals(Settings, later if not isinstance(later, list) else None, "settings")
    with pytest.raises(ArcadiaConfigError, match=r"settings\.flag is 'maybe'"):
        check_literals(Settings, {"count": later, "flag": "maybe"}, "settings")
    with pytest.raises(ArcadiaConfigError, match="unknown key 'cuont'"):
        check_literals(Settings, {"cuont": later}, "settings")


def test_an_unknown_key_of_a_plain_mapping_is_named():
    assert mapping({"a": 1}, "it", ["a"]) == {"a": 1}
    with pytest.raises(ArcadiaConfigError, match=r"it has the unknown key 'aa'\. Did you mean 'a'"):
        mapping({"aa": 1}, "it", ["a"])


# What every settings class of the provider is asked, with its values as templates render them.


def read_engine(raw: Any) -> WorkerSpec:
    request = LaunchRequest(lease="l", model="m", engine=mapping(raw, "engine"))
    return request.worker_spec(None, controller_address=None, drain_seconds=10.0)


BATCH = ("options", lambda raw: BatchSpec.parse(raw, input="i", output="o", model="m"))
ENGINE = ("engine", read_engine)
POD = ("pod", PodSettings.parse)
WORKER = ("custom_resource", WorkerResourceSettings.parse)
KUBERAY = ("ray_cluster_spec", KubeRaySpec.parse)


@pytest.mark.parametrize(
    ("options", "settings", "elsewhere"),
    [
        (BatchOptions, BatchSpec, {"input", "output", "model", "parameters", "storage"}),
        (PodOptions, PodSettings, {"startup_timeout"}),
        (ArcadiaWorkerOptions, WorkerResourceSettings, set()),
        (KubeRayOptions, KubeRaySpec, set()),
    ],
)
def test_the_typed_options_are_the_fields_that_are_validated(
    options: type[Any], settings: type[Any], elsewhere: set[str]
):
    local_head_only = {"num_cpus"}
    expected = [f.name for f in fields(settings) if f.name not in elsewhere]
    assert [name for name in options.__annotations__ if name not in local_head_only] == expected


@pytest.mark.parametrize(
    ("settings", "key", "text", "becomes"),
    [
        (BATCH, "overwrite", "False", False),
        (BATCH, "segment_seconds", "10", 10.0),
        (BATCH, "max_in_flight", "64", 64),
        (BATCH, "max_failed_fraction", "0.1", 0.1),
        (ENGINE, "drain_seconds", "30", 30.0),
        (ENGINE, "trust_remote_code", "False", False),
        (ENGINE, "gpu_memory_utilization", "0.9", 0.9),
        (ENGINE, "max_model_len", "None", None),
        (ENGINE, "extra_args", "--seed 1", ("--seed", "1")),
        (POD, "automount_service_account_token", "False", False),
        (POD, "active_deadline_seconds", "None", None),
        (POD, "image_pull_secrets", '["regcred"]', ["regcred"]),
        (WORKER, "existing", "false", False),
        (WORKER, "ray_cluster_index", "1", 1),
        (WORKER, "unschedulable_grace", "60", 60.0),
        (KUBERAY, "num_gpus", "4", 4),
        (KUBERAY, "startup_timeout", "900", 900.0),
    ],
)
def test_every_settings_class_takes_values_rendered_as_text(
    settings: tuple[str, Any], key: str, text: str, becomes: object
):
    _, read = settings
    assert getattr(read({key: text}), key) == becomes
    assert getattr(read(json.dumps({key: text})), key) == becomes


@pytest.mark.parametrize(
    ("settings", "wrong", "said"),
    [
        (BATCH, {"overwrite": "no idea"}, "options.overwrite is 'no idea', not true or false"),
        (BATCH, {"overwrit": True}, "Did you mean 'overwrite'"),
        (BATCH, {"output": "elsewhere"}, "unknown key 'output'"),
        (BATCH, {"request_timeout_s": float("nan")}, "options.request_timeout_s is nan"),
        (POD, {"image_pull_secrets": "regcred"}, "pod.image_pull_secrets is 'regcred', not a list"),
        (POD, {"tolerations": {"key": "gpu"}}, "pod.tolerations is a dict, not a list"),
        (ENGINE, {"drain_seconds": "-1"}, "engine.drain_seconds is '-1'"),
        (ENGINE, {"drain_seconds": [30]}, "engine.drain_seconds is a list, not a number"),
        (ENGINE, {"extra_args": "a 'b"}, "engine.extra_args is"),
        (ENGINE, {"max_num_seq": 8}, "Did you mean 'max_num_seqs'"),
        (ENGINE, {"model": "other"}, "engine has the unknown key 'model'"),
        (POD, {"labels": {"team": 5}}, "pod.labels.team is 5"),
        (POD, {"image_pull_policy": "always"}, "pod.image_pull_policy is 'always'. Use 'Always'"),
        (WORKER, {"existing": "perhaps"}, "custom_resource.existing is 'perhaps', not true or false"),
        (WORKER, {"resources": ["cpu"]}, "custom_resource.resources is a list, not a mapping"),
        (KUBERAY, {"num_gpus": "all"}, "ray_cluster_spec.num_gpus is 'all', not a whole number"),
        (KUBERAY, {"num_gpu": 1}, "Did you mean 'num_gpus'"),
    ],
)
def test_every_settings_class_names_the_parameter_at_fault(
    settings: tuple[str, Any], wrong: dict[str, Any], said: str
):
    name, read = settings
    with pytest.raises(ArcadiaConfigError) as error:
        read(wrong)
    assert said in str(error.value)
    assert name in str(error.value)


def test_two_text_settings_of_one_batch_travel_typed():
    spec = BatchSpec.parse({"overwrite": "False", "segment_seconds": "10"}, input="i", output="o", model="m")
    assert json.loads(json.dumps(spec.to_dict()))["overwrite"] is False
    assert BatchSpec(**spec.to_dict()) == spec
