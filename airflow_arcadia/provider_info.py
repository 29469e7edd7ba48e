"""What Airflow asks of a provider: its rooms, its connection form, its links."""

from __future__ import annotations

from typing import Any


def _text(label: str, description: str, *, secret: bool = False) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": ["string", "null"]}
    if secret:
        schema["format"] = "password"
    return {"label": label, "description": description, "schema": schema}


def get_provider_info() -> dict[str, Any]:
    """Provider metadata in the shape of Airflow's ``provider.yaml`` schema."""
    noun = {"worker": "Arcadia worker", "ray_cluster": "Arcadia Ray cluster", "batch": "Arcadia batch"}
    integrations = [{"integration-name": title, "tags": ["ai"]} for title in noun.values()]

    def rooms(room: str, *nouns: str) -> list[dict[str, Any]]:
        return [
            {"integration-name": noun[n], "python-modules": [f"airflow_arcadia.{room}.{n}"]} for n in nouns
        ]

    return {
        "package-name": "airflow-provider-arcadia",
        "name": "KubeAGI Arcadia",
        "description": "Distributed LLM batch inference with Ray, vLLM and FastChat.",
        "integrations": integrations,
        "hooks": [{"integration-name": noun["worker"], "python-modules": ["airflow_arcadia.hooks.arcadia"]}],
        "operators": [
            *rooms("operators", "worker", "ray_cluster", "batch"),
            {"integration-name": noun["worker"], "python-modules": ["airflow_arcadia.operators.reaper"]},
        ],
        "sensors": rooms("sensors", "worker", "ray_cluster"),
        "triggers": rooms("triggers", "worker", "batch"),
        "connection-types": [
            {
                "connection-type": "arcadia",
                "hook-class-name": "airflow_arcadia.hooks.arcadia.ArcadiaHook",
                "ui-field-behaviour": {
                    "hidden-fields": ["host", "port", "schema", "login"],
                    "relabeling": {"password": "Worker API key"},
                    "placeholders": {},
                },
                "conn-fields": {
                    "arcadia_config": _text("arcadia-config file", "Path of the arcadia-config file"),
                    "arcadia_config_yaml": _text("arcadia-config YAML", "Its text; wins over the file"),
                    "arcadia_config_map": _text(
                        "arcadia-config ConfigMap", "Its name, for workers in a cluster"
                    ),
                    "kubernetes_conn_id": _text(
                        "Kubernetes connection", "Workers are pods there; empty: processes of this machine"
                    ),
                    "namespace": _text("Namespace", "Of the workers; default the Kubernetes connection's"),
                    "worker_python": _text("Worker's Python", "For workers run as local processes"),
                    "state_dir": _text("State directory", "Leases and logs; default $AIRFLOW_HOME/arcadia"),
                    "hf_token": _text("Hugging Face token", "For workers in a cluster", secret=True),
                    "ray_token": _text(
                        "Ray token", "For Ray clusters with token authentication", secret=True
                    ),
                },
            }
        ],
        "extra-links": [
            "airflow_arcadia.operators.links.RayDashboardLink",
            "airflow_arcadia.operators.links.WorkerLink",
        ],
    }
