"""The worker's contract: what it is asked to serve, how it is told, and how it is found again.

Arcadia configures its FastChat worker by environment variables; :func:`WorkerSpec.to_env` writes them and
:func:`WorkerSpec.from_env` reads them inside the worker. Whatever launcher is used, this is the only way
in. Secrets are never part of it: it carries paths of files that hold them.
"""

from __future__ import annotations

import dataclasses
import enum
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_arcadia.exceptions import ArcadiaConfigError

DEFAULT_PORT = 21002
"""The port FastChat's and Arcadia's workers listen on."""


class WorkerStatus(str, enum.Enum):
    """Where a worker is in its life; the one vocabulary of logs, readiness and the UI."""

    PENDING = "pending"
    """Reserved or accepted, no process seen yet."""
    STARTING = "starting"
    """Its process runs; the model is not served yet."""
    READY = "ready"
    """It has generated a token through the API."""
    DRAINING = "draining"
    """It finishes its requests and takes no new ones."""
    STOPPED = "stopped"
    """It ended because it was asked to."""
    FAILED = "failed"
    """It ended, or will never be ready."""


@dataclass(frozen=True)
class RayConnection:
    """A Ray cluster proven usable: what provisioning hands to the launch (JSON-safe, goes through XCom).

    :param index: ``RAY_CLUSTER_INDEX``.
    :param address: ``host:port`` of the head's GCS, for ``RAY_ADDRESS``.
    :param dashboard_url: base URL of the dashboard's REST API.
    :param gpus_total: GPUs on the cluster's alive nodes.
    :param gpus_free: of these, not used when it was looked at.
    :param created: whether this run started the cluster and so must end it.
    """

    index: int
    name: str
    address: str
    dashboard_url: str
    ray_version: str
    python_version: str
    gpus_total: float
    gpus_free: float
    created: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> RayConnection:
        """Inverse of :meth:`to_dict`."""
        return cls(**raw)


@dataclass(frozen=True)
class WorkerSpec:
    """What one worker serves and with what.

    :param name: DNS label that identifies the worker; equal for every retry of the same task.
    :param model: path of a model folder, or a repository id that the worker's image can load.
    :param served_model_name: the name clients use; by default the last part of ``model``.
    :param num_gpus: ``NUMBER_GPUS``: GPUs from the Ray cluster; above 1 the tensor parallel size.
    :param ray_cluster_index: ``RAY_CLUSTER_INDEX``.
    :param ray_address: ``host:port`` of the Ray head; None only when ``num_gpus`` is 1.
    :param ray_dashboard_url: the dashboard's REST API, for evidence that the node joined.
    :param node_gpus: GPUs of the worker's own pod, which join the Ray cluster with it; None lets Ray count
        those it sees.
    :param controller_address: URL of FastChat's controller; None: do not register anywhere.
    :param host: address the server binds; loopback unless a pod says otherwise.
    :param port: 0 lets the process launcher pick a free one.
    :param advertised_address: URL others reach the worker at; by default ``http://host:port``.
    :param max_model_len: context length in tokens; None takes the model's own.
    :param max_num_seqs: sequences the engine runs at once.
    :param max_num_batched_tokens: tokens in one engine step.
    :param gpu_memory_utilization: ``GPU_MEMORY_UTILIZATION``, fraction of each GPU's memory in (0, 1].
    :param drain_seconds: grace for running requests after SIGTERM.
    :param api_key_file: file holding the API key (one line); None serves without a key.
    :param ray_token_file: file holding Ray's token, where the cluster asks for one.
    :param lease_file: file of the lease that owns the worker; None runs unowned.
    :param system_args: ``SYSTEM_ARGS``, words added to the server's command line.
    :param extra_args: ``EXTRA_ARGS``, words added after them.
    :param additional_envs: Arcadia's ``additionalEnvs``: come last and win over everything above.
    """

    name: str
    model: str
    served_model_name: str = ""
    num_gpus: int = 1
    ray_cluster_index: int = 0
    ray_address: str | None = None
    ray_dashboard_url: str | None = None
    ray_version: str | None = None
    python_version: str | None = None
    node_gpus: int | None = None
    controller_address: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    advertised_address: str | None = None
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    gpu_memory_utilization: float | None = None
    trust_remote_code: bool = False
    drain_seconds: float = 10.0
    api_key_file: str | None = None
    ray_token_file: str | None = None
    lease_file: str | None = None
    system_args: tuple[str, ...] = ()
    extra_args: tuple[str, ...] = ()
    additional_envs: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_gpus", parse_num_gpus(self.num_gpus))
        if not self.model:
            raise ArcadiaConfigError(
                "The worker has no model.", what_to_do="Set model to a path or repository id."
            )
        if not self.served_model_name:
            object.__setattr__(self, "served_model_name", self.model.rstrip("/").rsplit("/", 1)[-1])
        if not 0 <= self.port < 65536:
            raise ArcadiaConfigError(
                f"Port {self.port} does not exist.", what_to_do="Use 0 (any free) to 65535."
            )
        for limit in ("max_num_seqs", "max_num_batched_tokens", "max_model_len"):
            value = getattr(self, limit)
            if value is not None and value < 1:
                raise ArcadiaConfigError(f"{limit} is {value}.", what_to_do=f"Set {limit} to 1 or more.")
        share = self.gpu_memory_utilization
        if share is not None and not 0 < share <= 1:
            raise ArcadiaConfigError(
                f"GPU_MEMORY_UTILIZATION is {share}.", what_to_do="Use a fraction above 0 and up to 1."
            )

    @property
    def tensor_parallel_size(self) -> int:
        """vLLM's tensor parallel size: ``NUMBER_GPUS``."""
        return self.num_gpus

    @property
    def uses_ray(self) -> bool:
        """Whether the engine is placed on Ray: above one GPU (one GPU is the worker's own)."""
        return self.num_gpus > 1

    @property
    def url(self) -> str:
        """Where clients and the controller reach the worker."""
        return self.advertised_address or f"http://{self.host}:{self.port}"

    def to_env(self) -> dict[str, str]:
        """The worker's whole environment contract, as text. Inverse: :meth:`from_env`."""
        env = {variable: getattr(self, name) for name, variable in _VARIABLES.items()}
        env["FASTCHAT_WORKER_ADDRESS"] = self.url
        env["FASTCHAT_MODEL_NAME"] = self.served_model_name
        env["FASTCHAT_WORKER_NAME"] = ARCADIA_WORKER_TYPE
        env["SYSTEM_ARGS"] = shlex.join(self.system_args)
        env["EXTRA_ARGS"] = shlex.join(self.extra_args)
        env["ARCADIA_TRUST_REMOTE_CODE"] = "1" if self.trust_remote_code else None
        text = {key: str(value) for key, value in env.items() if value is not None and value != ""}
        return text | dict(self.additional_envs)

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> WorkerSpec:
        """Read the contract inside the worker.

        ``additional_envs`` cannot be told apart any more: they have already won over the rest.
        Raises :class:`ArcadiaConfigError` naming the variable that cannot be parsed.
        """
        values: dict[str, Any] = {}
        types = {f.name: str(f.type) for f in dataclasses.fields(cls)}
        for name, variable in _VARIABLES.items():
            if variable in env:
                values[name] = _parse(env[variable], types[name], variable)
        values.setdefault("name", env.get("HOSTNAME", "worker"))
        values.setdefault("model", env.get("FASTCHAT_MODEL_NAME", ""))
        values["advertised_address"] = env.get("FASTCHAT_WORKER_ADDRESS")
        values["trust_remote_code"] = env.get("ARCADIA_TRUST_REMOTE_CODE", "") not in {"", "0", "false"}
        values["system_args"] = tuple(shlex.split(env.get("SYSTEM_ARGS", "")))
        values["extra_args"] = tuple(shlex.split(env.get("EXTRA_ARGS", "")))
        return cls(**values)


ARCADIA_WORKER_TYPE = "fastchat.serve.vllm_worker"
"""``FASTCHAT_WORKER_NAME`` of Arcadia's only worker type that runs over Ray (``fastchat-vllm``)."""

_VARIABLES = {
    # Arcadia's own
    "num_gpus": "NUMBER_GPUS",
    "ray_cluster_index": "RAY_CLUSTER_INDEX",
    "ray_address": "RAY_ADDRESS",
    "ray_version": "RAY_VERSION",
    "python_version": "PYTHON_VERSION",
    "controller_address": "FASTCHAT_CONTROLLER_ADDRESS",
    "served_model_name": "FASTCHAT_REGISTRATION_MODEL_NAME",
    "model": "FASTCHAT_MODEL_NAME_PATH",
    "gpu_memory_utilization": "GPU_MEMORY_UTILIZATION",
    # what Arcadia hard-codes or does not have
    "name": "ARCADIA_WORKER",
    "ray_dashboard_url": "ARCADIA_RAY_DASHBOARD",
    "node_gpus": "ARCADIA_NODE_GPUS",
    "host": "ARCADIA_HOST",
    "port": "ARCADIA_PORT",
    "dtype": "ARCADIA_DTYPE",
    "max_model_len": "ARCADIA_MAX_MODEL_LEN",
    "max_num_seqs": "ARCADIA_MAX_NUM_SEQS",
    "max_num_batched_tokens": "ARCADIA_MAX_NUM_BATCHED_TOKENS",
    "drain_seconds": "ARCADIA_DRAIN_SECONDS",
    "api_key_file": "ARCADIA_API_KEY_FILE",
    "ray_token_file": "RAY_AUTH_TOKEN_PATH",
    "lease_file": "ARCADIA_LEASE_FILE",
}
"""Field of :class:`WorkerSpec` → environment variable."""


@dataclass(frozen=True)
class WorkerHandle:
    """A launched worker, found again from this alone (JSON-safe, goes through XCom).

    :param name: the worker's name, as in its spec.
    :param lease: name of the lease that owns it.
    :param launcher: which launcher made it and can observe and end it: ``process``, ``pod``, …
    :param url: base URL, e.g. ``http://127.0.0.1:21002``.
    :param controller_address: URL of the controller it registers with, if any.
    :param where: what the launcher needs to find it: ``pid`` and ``started_at`` (process), namespace and
        pod name (pod). ``log`` is where its output goes.
    """

    name: str
    lease: str
    launcher: str
    url: str
    served_model_name: str
    num_gpus: int
    controller_address: str | None = None
    ray: RayConnection | None = None
    where: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> WorkerHandle:
        """Inverse of :meth:`to_dict`."""
        ray = raw.get("ray")
        return cls(**{**raw, "ray": RayConnection.from_dict(ray) if ray else None})


def parse_num_gpus(value: object) -> int:
    """``NUMBER_GPUS`` as a positive integer; text is accepted because environments carry text.

    Raises :class:`ArcadiaConfigError` for anything else: Arcadia reads it unchecked.
    """
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdecimal() or int(text) < 1:
        raise ArcadiaConfigError(
            f"NUMBER_GPUS is {value!r}.", what_to_do="Set it to a whole number of GPUs, 1 or more."
        )
    return int(text)


def _parse(text: str, declared: str, variable: str) -> str | int | float:
    kind = declared.removesuffix(" | None")
    try:
        if kind == "int":
            return int(text)
        return float(text) if kind == "float" else text
    except ValueError as error:
        wanted = "a whole number" if kind == "int" else "a number"
        raise ArcadiaConfigError(
            f"{variable} is {text!r}, not {wanted}.", what_to_do=f"Correct {variable}."
        ) from error
