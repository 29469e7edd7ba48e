"""What must hold before a GPU is spent: facts of cluster, model and worker in, findings out.

Everything but :func:`require_model`, which reads one file, is pure. Rules of Ray 2.60: every node has the
same Ray version and, by default, the same Python down to the patch level. Rules of vLLM 0.32: a tensor
parallel size divides the attention heads, and divides the key-value heads or is a multiple of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_arcadia.exceptions import (
    NO_WORKER_STARTED,
    ArcadiaConfigError,
    RayClusterBusyError,
    RayClusterUnfitError,
)


@dataclass(frozen=True)
class Versions:
    """What one side of a Ray connection runs, e.g. ``2.60.0`` and ``3.11.7``."""

    ray: str
    python: str


@dataclass(frozen=True)
class Finding:
    """One reason why the worker cannot be placed now.

    :param passing: whether it may pass while one waits.
    """

    what: str
    what_to_do: str
    passing: bool = False


def check_cluster(
    cluster: Versions, worker: Versions | None, gpus_total: float, gpus_free: float, num_gpus: int
) -> list[Finding]:
    """All that stands between the cluster and a worker of ``num_gpus`` GPUs, gravest first.

    :param worker: what the worker runs; None where it cannot be known before it starts (an image).
    """
    findings = []
    if worker is not None and cluster.ray != worker.ray:
        findings.append(
            Finding(
                f"it runs Ray {cluster.ray}, the worker Ray {worker.ray}.",
                "Use the same Ray version on both: Ray refuses nodes of another one.",
            )
        )
    if worker is not None and cluster.python != worker.python:
        findings.append(
            Finding(
                f"it runs Python {cluster.python}, the worker Python {worker.python}.",
                "Use the same Python on both, down to the patch level: Ray refuses another one.",
            )
        )
    if gpus_total < num_gpus:
        findings.append(
            Finding(
                f"it has {gpus_total:g} GPUs, NUMBER_GPUS asks for {num_gpus}.",
                "Lower NUMBER_GPUS, add GPU nodes, or choose another cluster.",
            )
        )
    elif gpus_free < num_gpus:
        findings.append(
            Finding(
                f"{gpus_free:g} of its {gpus_total:g} GPUs are free, NUMBER_GPUS asks for {num_gpus}.",
                "Wait for the others to end (ArcadiaRayClusterSensor does), or choose another cluster.",
                passing=True,
            )
        )
    return findings


def require(name: str, findings: list[Finding]) -> None:
    """Raise the gravest finding about Ray cluster ``name``, if there is one.

    Raises :class:`RayClusterUnfitError`, or :class:`RayClusterBusyError` for what may pass.
    """
    if not findings:
        return
    kind = RayClusterBusyError if all(f.passing for f in findings) else RayClusterUnfitError
    first = next(f for f in findings if f.passing == (kind is RayClusterBusyError))
    what = " ".join(f"Ray cluster {name} cannot take the worker: {f.what}" for f in findings)
    raise kind(what, still_running=NO_WORKER_STARTED, what_to_do=first.what_to_do)


def possible_sizes(model_config: Mapping[str, Any], limit: int = 64) -> list[int] | None:
    """Tensor parallel sizes up to ``limit`` that the model can be split into; None when it does not say.

    :param model_config: the model's ``config.json``.
    """
    text = model_config.get("text_config") or model_config  # multimodal models nest their language part
    heads = text.get("num_attention_heads")
    if not isinstance(heads, int):
        return None
    kv_heads = text.get("num_key_value_heads") or heads
    return [
        size
        for size in range(1, min(heads, limit) + 1)
        if heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)
    ]


def check_model(model: str, model_config: Mapping[str, Any], num_gpus: int) -> None:
    """Raise :class:`ArcadiaConfigError` naming the possible sizes when the model cannot be split so."""
    sizes = possible_sizes(model_config)
    if sizes is None or num_gpus in sizes:
        return
    text = model_config.get("text_config") or model_config
    heads, kv_heads = text["num_attention_heads"], text.get("num_key_value_heads")
    raise ArcadiaConfigError(
        f"{model} has {heads} attention heads and {kv_heads or heads} key-value heads: "
        f"they cannot be divided over {num_gpus} GPUs.",
        still_running=NO_WORKER_STARTED,
        what_to_do=f"Set NUMBER_GPUS to {_listed(sizes)}.",
    )


def require_model(model: str, num_gpus: int) -> None:
    """Check a model that is a folder of this machine; a repository id is left to the worker.

    Raises :class:`ArcadiaConfigError` when the folder holds no readable ``config.json``, or when its heads
    cannot be divided over ``num_gpus``.
    """
    folder = Path(model).expanduser()
    if not folder.is_absolute() and not model.startswith((".", "~")) and not folder.exists():
        return
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        is_there = "has no config.json" if folder.is_dir() else "is not a folder"
        raise ArcadiaConfigError(
            f"Model path {model} {is_there}.",
            still_running=NO_WORKER_STARTED,
            what_to_do="Point model at a folder in Hugging Face format, or use a repository id.",
        ) from None
    except (OSError, ValueError) as error:
        raise ArcadiaConfigError(
            f"The model's {path} cannot be read: {error}.",
            still_running=NO_WORKER_STARTED,
            what_to_do="Repair the model's folder.",
        ) from error
    if isinstance(config, dict):
        check_model(model, config, num_gpus)


def _listed(sizes: list[int]) -> str:
    *most, last = map(str, sizes)
    return f"{', '.join(most)} or {last}" if most else last
