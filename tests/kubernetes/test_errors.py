"""What an API server answers, as errors that say what to do."""

from __future__ import annotations

import json

import pytest

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.kubernetes import errors
from airflow_arcadia.kubernetes.kinds import POD, RAY_CLUSTER


def answer(status: int, message: str, verb: str = "create", name: str | None = None, kind=POD):
    return errors.refused(status, json.dumps({"message": message}), verb, kind, "ns", name)


def test_a_missing_right_names_the_verb_and_the_resource():
    error = answer(403, 'User "a" cannot watch resource "rayclusters"', "watch", kind=RAY_CLUSTER)
    assert isinstance(error, errors.KubernetesForbiddenError)
    assert not error.retryable
    assert 'may not watch rayclusters of API group "ray.io" in namespace ns' in str(error)
    assert "Add the verb 'watch' on 'rayclusters'" in str(error)


def test_a_quota_may_be_free_again_and_a_missing_right_not():
    quota = answer(403, 'pods "p" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1')
    assert isinstance(quota, errors.KubernetesQuotaError)
    assert quota.retryable


@pytest.mark.parametrize(
    "said",
    [
        'pods "p" is forbidden: no PriorityClass with name urgent was found',
        'pods "p" is forbidden: violates PodSecurity "restricted:latest": host namespaces',
        'admission webhook "policy.test" denied the request: no',
    ],
)
def test_what_admission_refuses_is_not_told_as_a_missing_right(said: str):
    error = answer(403, said)
    assert isinstance(error, errors.KubernetesInvalidError)
    assert said in str(error)
    assert "Role" not in str(error)


def test_admission_of_a_server_that_has_just_started_refuses_nothing():
    error = answer(403, 'pods "p" is forbidden: not yet ready to handle request')
    assert isinstance(error, errors.KubernetesUnreachableError)


def test_credentials_that_are_not_accepted_are_no_missing_right():
    assert (answer(401, "Unauthorized").status, answer(403, "User cannot get resource").status) == (401, 403)


def test_an_absent_object_is_told_from_a_kind_the_cluster_does_not_know():
    assert isinstance(answer(404, 'pods "p" not found', "get", "p"), errors.KubernetesAbsentError)
    unknown = answer(404, "the server could not find the requested resource", "get", "p", RAY_CLUSTER)
    assert isinstance(unknown, errors.KubernetesInvalidError)
    assert "operator that serves this kind" in str(unknown)


@pytest.mark.parametrize("status", [0, 429, 500, 503, 504])
def test_a_server_that_cannot_answer_says_nothing_about_what_is_there(status: int):
    assert isinstance(answer(status, "busy"), errors.KubernetesUnreachableError)


def test_what_the_server_refuses_is_a_configuration_error_in_its_words():
    error = answer(422, 'Pod "p" is invalid: spec.containers[0].image: Required value')
    assert isinstance(error, ArcadiaConfigError)
    assert "spec.containers[0].image: Required value." in str(error)
    assert isinstance(answer(409, "exists"), errors.KubernetesConflictError)
    assert isinstance(answer(410, "too old"), errors.KubernetesExpiredError)
    assert "credentials" in str(answer(401, "Unauthorized"))


def test_an_answer_that_is_no_status_object_is_still_told():
    error = errors.refused(502, "<html>bad gateway</html>", "get", POD, "ns")
    assert "HTTP 502: <html>bad gateway</html>." in str(error)
