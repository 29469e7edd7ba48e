"""Provider metadata for Airflow: modules, the connection form, links."""

from __future__ import annotations

from typing import Any


def _text(label: str, description: str, example: str = "", *, form: str | None = None) -> dict[str, Any]:
    """One field of the connection form.

    :param form: ``password`` hides what is typed; ``multiline`` keeps line ends, which one line drops.
    """
    schema: dict[str, Any] = {"type": ["string", "null"]}
    if form:
        schema["format"] = form
    if example:
        description = f"{description} Example: {example}"
    return {"label": label, "description": description, "schema": schema}


_CONNECTION_FIELDS = {
    "arcadia_config_yaml": _text(
        "arcadia-config (YAML)",
        "Which Ray clusters and which FastChat gateway exist. Wins over the file and the ConfigMap.",
        "rayClusters: [{name: two-gpus, headAddress: 10.0.0.5:6379, pythonVersion: 3.11.7}]",
        form="multiline",
    ),
    "arcadia_config": _text(
        "arcadia-config (file)",
        "Path of the same YAML in a file that every Airflow component can read.",
        "/opt/airflow/arcadia-config.yaml",
    ),
    "arcadia_config_map": _text(
        "arcadia-config (ConfigMap)",
        "Name of the ConfigMap that holds it under the key config; for workers on Kubernetes.",
        "arcadia-config",
    ),
    "worker_python": _text(
        "Local workers: Python",
        "Python of the environment with vLLM and Ray. Empty: ARCADIA_WORKER_PYTHON, else Airflow's own.",
        "/opt/arcadia-worker/bin/python",
    ),
    "state_dir": _text(
        "Local workers: state directory",
        "Where leases, logs and secret files are kept. Empty: $AIRFLOW_HOME/arcadia.",
        "/var/lib/arcadia",
    ),
    "kubernetes_conn_id": _text(
        "Kubernetes: connection",
        "Id of a connection of type kubernetes: workers are pods there. Empty: workers are local processes.",
        "kubernetes_default",
    ),
    "namespace": _text(
        "Kubernetes: namespace", "Where workers run. Empty: the Kubernetes connection's.", "arcadia"
    ),
    "generate_api_key": _text(
        "Kubernetes: generate API keys",
        "Where no worker API key is given, each worker gets a random one for its run's tasks. false: workers "
        "serve whoever reaches them.",
        "false",
    ),
    "ray_token": _text(
        "Token of the Ray clusters", "Only for Ray clusters with token authentication.", form="password"
    ),
    "hf_token": _text(
        "Hugging Face token",
        "Only for models that need one; given to workers on Kubernetes.",
        form="password",
    ),
}


def get_provider_info() -> dict[str, Any]:
    """Provider metadata in the shape of Airflow's ``provider.yaml`` schema."""
    noun = {"worker": "Arcadia worker", "ray_cluster": "Arcadia Ray cluster", "batch": "Arcadia batch"}
    integrations = [{"integration-name": title, "tags": ["ai"]} for title in noun.values()]

    def modules(package: str, *nouns: str) -> list[dict[str, Any]]:
        return [
            {"integration-name": noun[n], "python-modules": [f"airflow_arcadia.{package}.{n}"]} for n in nouns
        ]

    return {
        "package-name": "airflow-provider-arcadia",
        "name": "KubeAGI Arcadia",
        "description": "Distributed LLM batch inference with Ray, vLLM and FastChat.",
        "integrations": integrations,
        "hooks": [{"integration-name": noun["worker"], "python-modules": ["airflow_arcadia.hooks.arcadia"]}],
        "operators": [
            *modules("operators", "worker", "ray_cluster", "batch"),
            {"integration-name": noun["worker"], "python-modules": ["airflow_arcadia.operators.reaper"]},
        ],
        "sensors": modules("sensors", "worker", "ray_cluster"),
        "triggers": modules("triggers", "worker", "batch"),
        "task-decorators": [
            {"name": "arcadia_batch", "class-name": "airflow_arcadia.decorators.batch.arcadia_batch_task"}
        ],
        "connection-types": [
            {
                "connection-type": "arcadia",
                "hook-class-name": "airflow_arcadia.hooks.arcadia.ArcadiaHook",
                "ui-field-behaviour": {
                    "hidden-fields": ["host", "port", "schema", "login"],
                    "relabeling": {"password": "Worker API key"},
                    "placeholders": {"password": "empty: a random one for each worker on Kubernetes"},
                },
                "conn-fields": _CONNECTION_FIELDS,
            }
        ],
        "extra-links": [
            f"airflow_arcadia.ui.links.{name}Link"
            for name in ("RayDashboard", "Worker", "WorkerLog", "Batch", "Output")
        ],
    }
