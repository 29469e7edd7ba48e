"""The shipped manifests, as objects."""

from __future__ import annotations

from typing import Any

import yaml

from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
NAMESPACE = "arcadia"


def documents(name: str) -> list[dict[str, Any]]:
    """All objects of one file."""
    return [item for item in yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")) if item]


def everything() -> list[dict[str, Any]]:
    """All objects of all files but kustomize's own and Prometheus' rules."""
    others = {"kustomization.yaml", "alerts.yaml"}
    names = sorted(path.name for path in DEPLOY.glob("*.yaml") if path.name not in others)
    return [item for name in names for item in documents(name)]


def role(name: str, namespace: str = NAMESPACE) -> dict[str, Any]:
    """One of the shipped Roles, as it is in that namespace."""
    found = next(d for d in documents("rbac.yaml") if d["kind"] == "Role" and d["metadata"]["name"] == name)
    return {**found, "metadata": {**found["metadata"], "namespace": namespace}}


def rights(*roles: dict[str, Any]) -> set[tuple[str, str, str]]:
    """(verb, group, resource) that the roles grant."""
    return {
        (verb, group, resource)
        for item in roles
        for rule in item["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
