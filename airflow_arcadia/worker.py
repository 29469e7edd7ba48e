"""The worker's contract: its specification, its environment variables, and the handle that finds it again.

Arcadia configures its FastChat worker by environment variables; :meth:`PlacedWorker.to_env` writes them and
:meth:`PlacedWorker.from_env` reads them inside the worker. Whatever launcher is used, this is the only way
in. Secrets are never part of it: it carries paths of files that hold them.
"""

from __future__ import annotations

import dataclasses
import enum
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.validation import (
    Count,
    Index,
    Port,
    PortOrAny,
    Seconds,
    Variables,
    Words,
    check_fields,
    parse,
)

Share = Annotated[float, Field(gt=0, le=1)]

DEFAULT_PORT = 21002
"""The port FastChat's and Arcadia's workers listen on."""
DEFAULT_FASTCHAT_PORT = 21003
"""The port of a worker with an API key at which FastChat's gateway reaches it without one."""

DEFAULT_STARTUP_TIMEOUT_S = 1800.0
"""What loading a large model from a network disk may take."""


class WorkerStatus(str, enum.Enum):
    """Where a worker is in its life; the one vocabulary of logs, readiness and the UI."""

    STARTING = "starting"
    """Its process runs; the model is not served yet."""
    READY = "ready"
    """It has generated a token through the API."""
    HUNG = "hung"
    """Requests run and its engine makes no token."""
    DRAINING = "draining"
    """It finishes its requests and takes no new ones."""
    FAILED = "failed"
    """It ended, or will never be ready."""


@dataclass(frozen=True)
class RayConnection:
    """A Ray cluster proven usable: what provisioning hands to the launch (JSON-safe, goes through XCom).

    :param index: ``RAY_CLUSTER_INDEX``.
    :param name: the cluster's name in arcadia-config, or that of the one made for the run.
    :param address: ``host:port`` of the head's GCS, for ``RAY_ADDRESS``.
    :param dashboard_url: base URL of the dashboard's REST API.
    :param ray_version: the cluster's Ray.
    :param python_version: the cluster's Python.
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
    """What one worker serves and with what; the same wherever it runs.

    :param name: DNS label that identifies the worker; equal for every retry of the same task.
    :param model: path of a model folder, or a repository id that the worker's image can load.
    :param served_model_name: the name clients use; by default the last part of ``model``.
    :param num_gpus: ``NUMBER_GPUS``: GPUs from the Ray cluster; above 1 the tensor parallel size.
    :param ray_cluster_index: ``RAY_CLUSTER_INDEX``.
    :param ray_address: ``host:port`` of the Ray head; None only when ``num_gpus`` is 1.
    :param ray_dashboard_url: the dashboard's REST API, for evidence that the node joined.
    :param ray_version: Ray of the cluster, which the worker's must be; None does not compare them.
    :param python_version: Python of the cluster, which the worker's must be; None does not compare them.
    :param controller_address: URL of FastChat's controller; None: do not register anywhere.
    :param dtype: vLLM's ``--dtype``.
    :param max_model_len: context length in tokens; None takes the model's own.
    :param max_num_seqs: sequences the engine runs at once.
    :param max_num_batched_tokens: tokens in one engine step.
    :param gpu_memory_utilization: ``GPU_MEMORY_UTILIZATION``, fraction of each GPU's memory in (0, 1].
    :param trust_remote_code: vLLM's ``--trust-remote-code``: runs code that comes with the model.
    :param drain_seconds: grace for running requests after SIGTERM.
    :param hang_timeout: seconds without a token, while requests run, after which the engine counts as hung;
        0 for never.
    :param hang_restart_timeout: seconds a hung engine is given to recover before the worker ends; 0 for ever.
    :param idle_timeout: seconds without a request after which the worker ends, unless a batch runs in it; 0
        for never. None: 15 minutes, if its lease is not renewed either; a worker without a lease file stays.
    :param system_args: ``SYSTEM_ARGS``, words added to the server's command line.
    :param extra_args: ``EXTRA_ARGS``, words added after them.
    :param lora_modules: adapters served beside the model, each ``name=path`` (a folder or a repository id of
        the worker's machine): a row or request whose ``model`` is that name is answered with it.
    :param allowed_uris: folders (absolute paths and URIs) that batches of ``/v1/batches`` may name; without
        any, only the run's own tasks do. Requests may name images and other media at the HTTP hosts among
        them; without any, only media in the request itself (``data:`` URLs).
    :param max_file_bytes: size of a file that a client may upload to ``/v1/files``.
    :param max_files_bytes: size of all files of clients together, what their batches write included.
    :param file_lifetime: seconds after which such a file is removed; all are when the worker's lease ends.
    :param additional_envs: Arcadia's ``additionalEnvs``: come last and win over everything above.

    Raises :class:`ArcadiaConfigError` naming every field that is not valid.
    """

    name: str
    model: str
    served_model_name: str = ""
    num_gpus: int = 1
    ray_cluster_index: Index = 0
    ray_address: str | None = None
    ray_dashboard_url: str | None = None
    ray_version: str | None = None
    python_version: str | None = None
    controller_address: str | None = None
    dtype: str = "auto"
    max_model_len: Count | None = None
    max_num_seqs: Count = 256
    max_num_batched_tokens: Count = 8192
    gpu_memory_utilization: Share | None = None
    trust_remote_code: bool = False
    drain_seconds: Seconds = 10.0
    hang_timeout: Seconds = 60.0
    hang_restart_timeout: Seconds = 120.0
    idle_timeout: Seconds | None = None
    system_args: Words = ()
    extra_args: Words = ()
    lora_modules: Words = ()
    allowed_uris: Words = ()
    max_file_bytes: Count = 512 * 2**20
    max_files_bytes: Count = 8 * 2**30
    file_lifetime: Seconds = 30 * 24 * 3600.0
    additional_envs: Variables = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_gpus", parse_num_gpus(self.num_gpus))
        if not self.model:
            raise ArcadiaConfigError(
                "The worker has no model.", what_to_do="Set model to a path or repository id."
            )
        check_fields(self, "worker")
        if wrong := next((one for one in self.lora_modules if not all(one.partition("=")[::2])), None):
            raise ArcadiaConfigError(
                f"lora_modules has {wrong!r}.", what_to_do="Give each adapter as name=path."
            )
        if not self.served_model_name:
            object.__setattr__(self, "served_model_name", self.model.rstrip("/").rsplit("/", 1)[-1])

    @property
    def tensor_parallel_size(self) -> int:
        """vLLM's tensor parallel size: ``NUMBER_GPUS``."""
        return self.num_gpus

    @property
    def uses_ray(self) -> bool:
        """Whether the engine is placed on Ray: above one GPU (one GPU is the worker's own)."""
        return self.num_gpus > 1

    def at(self, placement: Placement) -> PlacedWorker:
        """The spec together with where a launcher puts the worker."""
        served = {f.name: getattr(self, f.name) for f in dataclasses.fields(WorkerSpec)}
        return PlacedWorker(**served, **vars(placement))


class EngineOptions(TypedDict, total=False):
    """Keys of the parameter ``engine``, with the meaning of :class:`WorkerSpec`'s fields.

    Every value may be a template; text becomes the declared type.
    """

    dtype: str
    max_model_len: int | str | None
    max_num_seqs: int | str
    max_num_batched_tokens: int | str
    gpu_memory_utilization: float | str | None
    trust_remote_code: bool | str
    drain_seconds: float | str
    hang_timeout: float | str
    hang_restart_timeout: float | str
    idle_timeout: float | str | None
    system_args: Sequence[str] | str
    extra_args: Sequence[str] | str
    lora_modules: Sequence[str] | str
    allowed_uris: Sequence[str] | str
    max_file_bytes: int | str
    max_files_bytes: int | str
    file_lifetime: float | str


ENGINE = {name: name for name in EngineOptions.__annotations__}
"""Keys of ``engine`` → fields of :class:`WorkerSpec`."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where one worker listens and where its files are; a launcher decides it.

    :param host: address the server binds; loopback unless a pod says otherwise.
    :param port: port it listens on.
    :param advertised_address: URL others reach the worker at; by default ``http://host:port``.
    :param node_gpus: GPUs of the worker's own pod, which join the Ray cluster with it; None lets Ray count
        those it sees.
    :param api_key_file: file holding the API key (one line); None serves without a key.
    :param ray_token_file: file holding Ray's token, where the cluster asks for one.
    :param batch_token_file: file holding the token by which the run's own tasks are known to it.
    :param storage_options_file: file holding the options of file systems by protocol, as JSON, for batches
        that the worker runs itself; None takes what its environment has.
    :param lease_file: file of the lease that owns the worker; None runs unowned.
    :param fastchat_port: port that serves FastChat's protocol, and nothing else, without the API key, which
        FastChat's gateway cannot send. None serves it on ``port`` alone.
    """

    host: str = "127.0.0.1"
    port: PortOrAny = 0
    advertised_address: str | None = None
    node_gpus: Index | None = None
    api_key_file: str | None = None
    ray_token_file: str | None = None
    batch_token_file: str | None = None
    storage_options_file: str | None = None
    lease_file: str | None = None
    fastchat_port: Port | None = None

    @property
    def url(self) -> str:
        """Where clients and the controller reach the worker."""
        return self.advertised_address or f"http://{self.host}:{self.port}"

    @property
    def fastchat_url(self) -> str:
        """Where FastChat's servers reach the worker: at its own port, if it has one."""
        if self.fastchat_port is None:
            return self.url
        parts = urlsplit(self.url)
        host = parts.netloc.removesuffix(f":{parts.port}")
        return urlunsplit((parts.scheme, f"{host}:{self.fastchat_port}", parts.path, "", ""))


@dataclass(frozen=True)
class PlacedWorker(WorkerSpec, Placement):
    """A worker's spec with its placement: all that its environment says."""

    def to_env(self) -> dict[str, str]:
        """The worker's whole environment contract, as text. Inverse: :meth:`from_env`."""
        env = {variable: getattr(self, name) for name, variable in VARIABLES.items()}
        env["FASTCHAT_WORKER_ADDRESS"] = self.url
        env["FASTCHAT_MODEL_NAME"] = self.served_model_name
        env["FASTCHAT_WORKER_NAME"] = ARCADIA_WORKER_TYPE
        env["SYSTEM_ARGS"] = shlex.join(self.system_args)
        env["EXTRA_ARGS"] = shlex.join(self.extra_args)
        env["ARCADIA_LORA_MODULES"] = shlex.join(self.lora_modules)
        env["ARCADIA_ALLOWED_URIS"] = shlex.join(self.allowed_uris)
        env["ARCADIA_TRUST_REMOTE_CODE"] = "1" if self.trust_remote_code else None
        text = {key: str(value) for key, value in env.items() if value is not None and value != ""}
        return text | dict(self.additional_envs)

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> PlacedWorker:
        """Read the contract inside the worker.

        ``additional_envs`` cannot be told apart from the rest any more, which they have overridden.
        Raises :class:`ArcadiaConfigError` naming the variable that is not valid.
        """
        read = {variable: name for name, variable in VARIABLES.items()} | _ONLY_READ
        fallback = {
            "name": env.get("HOSTNAME", "worker"),
            "model": env.get("FASTCHAT_MODEL_NAME", ""),
        }
        given = {variable: env[variable] for variable in read if variable in env}
        return parse(cls, given, "environment", names=read, **fallback)


ARCADIA_WORKER_TYPE = "fastchat.serve.vllm_worker"
"""``FASTCHAT_WORKER_NAME`` of Arcadia's only worker type that runs over Ray (``fastchat-vllm``)."""

NODE_GPUS = "ARCADIA_NODE_GPUS"
"""The one variable that a launcher may only know once its pod is complete."""

BATCH_TOKEN_VARIABLE = "ARCADIA_BATCH_TOKEN"  # noqa: S105 - the name of a variable
"""The batch token itself, where a launcher cannot mount a file. The runtime moves it to one at once."""

VARIABLES = {
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
    "node_gpus": NODE_GPUS,
    "host": "ARCADIA_HOST",
    "port": "ARCADIA_PORT",
    "dtype": "ARCADIA_DTYPE",
    "max_model_len": "ARCADIA_MAX_MODEL_LEN",
    "max_num_seqs": "ARCADIA_MAX_NUM_SEQS",
    "max_num_batched_tokens": "ARCADIA_MAX_NUM_BATCHED_TOKENS",
    "drain_seconds": "ARCADIA_DRAIN_SECONDS",
    "hang_timeout": "ARCADIA_HANG_TIMEOUT",
    "hang_restart_timeout": "ARCADIA_HANG_RESTART_TIMEOUT",
    "idle_timeout": "ARCADIA_IDLE_TIMEOUT",
    "max_file_bytes": "ARCADIA_MAX_FILE_BYTES",
    "max_files_bytes": "ARCADIA_MAX_FILES_BYTES",
    "file_lifetime": "ARCADIA_FILE_LIFETIME",
    "api_key_file": "ARCADIA_API_KEY_FILE",
    "ray_token_file": "RAY_AUTH_TOKEN_PATH",
    "batch_token_file": "ARCADIA_BATCH_TOKEN_FILE",
    "storage_options_file": "ARCADIA_STORAGE_OPTIONS_FILE",
    "lease_file": "ARCADIA_LEASE_FILE",
    "fastchat_port": "ARCADIA_FASTCHAT_PORT",
}
"""Field of :class:`PlacedWorker` → environment variable."""

_ONLY_READ = {
    "FASTCHAT_WORKER_ADDRESS": "advertised_address",
    "ARCADIA_TRUST_REMOTE_CODE": "trust_remote_code",
    "SYSTEM_ARGS": "system_args",
    "EXTRA_ARGS": "extra_args",
    "ARCADIA_LORA_MODULES": "lora_modules",
    "ARCADIA_ALLOWED_URIS": "allowed_uris",
}
"""Environment variable → field, for those that are not written as they stand."""


@dataclass(frozen=True)
class WorkerHandle:
    """A launched worker, found again from this alone (JSON-safe, goes through XCom).

    :param name: the worker's name, as in its spec.
    :param lease: name of the lease that owns it.
    :param launcher: which launcher made it and can observe and end it: ``process``, ``pod``, …
    :param url: base URL, e.g. ``http://127.0.0.1:21002``.
    :param served_model_name: name clients use.
    :param num_gpus: ``NUMBER_GPUS``.
    :param controller_address: URL of the controller it registers with, if any.
    :param ray: the Ray cluster it is placed on (:class:`RayConnection`); None for one GPU.
    :param where: what the launcher needs to find it: ``pid`` and ``started_at`` (process), namespace and
        pod name (pod). ``log`` is where its output goes.
    :param run_lease: the run's own lease, where the worker is a warm one and has another.
    :param model_identity: what tells the model from another, where ``served_model_name`` is the worker's own.
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
    run_lease: str | None = None
    model_identity: str = ""

    @property
    def held_by(self) -> str:
        """The lease to renew while the worker is needed."""
        return self.run_lease or self.lease

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
