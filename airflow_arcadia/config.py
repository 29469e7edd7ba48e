"""arcadia-config: which gateway and which Ray clusters exist.

The schema is KubeAGI Arcadia's: the YAML under the data key ``config`` of the ConfigMap ``arcadia-config``.
Parts this provider does not use are accepted by name, everything else is refused: a misspelt key that
is silently ignored would send a worker to the wrong cluster.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

from airflow_arcadia import strict_yaml
from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.validation import Text, mapping, parse

GCS_PORT = 6379
DASHBOARD_PORT = 8265

ARCADIA_ONLY_KEYS = frozenset(
    {
        "systemDatasource",
        "relationalDatasource",
        "embedder",
        "vectorStore",
        "rerank",
        "streamlit",
        "config",
    }
)
"""Top-level keys that Arcadia's own components read from the same file; not used here."""


@dataclass(frozen=True)
class Gateway:
    """FastChat's two servers, as Arcadia's ``gateway`` entry names them (both URLs)."""

    api_server: str | None = None
    external_api_server: str | None = None
    controller: str | None = None

    @classmethod
    def parse(cls, raw: object) -> Gateway:
        """Read the ``gateway`` mapping. Raises :class:`ArcadiaConfigError` naming the key at fault."""
        return parse(cls, raw, "gateway", names=_GATEWAY_KEYS)


_GATEWAY_KEYS = {
    "apiServer": "api_server",
    "externalApiServer": "external_api_server",
    "controller": "controller",
}


@dataclass(frozen=True)
class RayCluster:
    """One entry of ``rayClusters``.

    :param head_address: ``host:port`` of the head's GCS (port 6379 if none is given).
    :param python_version: the cluster's Python, e.g. ``3.11.7``; None means "not stated".
    :param ray_version: the cluster's Ray, e.g. ``2.60.0``; None means "not stated".
    :param dashboard_host: ``host``, ``host:port`` or URL of the dashboard; by default the head's host.
    """

    name: Text
    head_address: Text
    python_version: str | None = None
    ray_version: str | None = None
    dashboard_host: str | None = None

    def __post_init__(self) -> None:
        head = _host_port(self.head_address, GCS_PORT, f"headAddress of {self.name}")
        object.__setattr__(self, "head_address", head)

    @classmethod
    def parse(cls, raw: object, index: int) -> RayCluster:
        """Read entry number ``index``. Raises :class:`ArcadiaConfigError` naming the key at fault."""
        return parse(cls, raw, f"rayClusters[{index}]", names=_CLUSTER_KEYS)

    @property
    def head_host(self) -> str:
        """The head's host name or address, without the port."""
        return self.head_address.rpartition(":")[0]

    @property
    def dashboard_url(self) -> str:
        """Base URL of the dashboard's REST API."""
        host = self.dashboard_host or self.head_host
        if "://" in host:
            return host.rstrip("/")
        return f"http://{_host_port(host, DASHBOARD_PORT, f'dashboardHost of {self.name}')}"

    @property
    def is_loopback(self) -> bool:
        """Whether the head's address is this machine's own: only there may a local head be started."""
        return self.head_host in {"localhost", "::1", "[::1]"} or self.head_host.startswith("127.")


_CLUSTER_KEYS = {
    "name": "name",
    "headAddress": "head_address",
    "pythonVersion": "python_version",
    "rayVersion": "ray_version",
    "dashboardHost": "dashboard_host",
}


@dataclass(frozen=True)
class ArcadiaConfig:
    """The whole file, as far as this provider uses it."""

    gateway: Gateway = Gateway()
    ray_clusters: tuple[RayCluster, ...] = ()

    @classmethod
    def from_yaml(cls, text: str) -> ArcadiaConfig:
        """Parse YAML text. Raises :class:`ArcadiaConfigError` naming the line or key at fault."""
        try:
            documents = strict_yaml.load_all(text)
        except yaml.YAMLError as error:
            raise ArcadiaConfigError(
                f"arcadia-config is not valid YAML: {error}.", what_to_do="Correct the file and run again."
            ) from error
        if len(documents) > 1:
            raise ArcadiaConfigError(
                f"arcadia-config has {len(documents)} documents.", what_to_do="Give a file with one."
            )
        return cls.parse(documents[0] if documents else {})

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> ArcadiaConfig:
        """Read a file. Raises :class:`ArcadiaConfigError` when it cannot be read or parsed."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArcadiaConfigError(
                f"arcadia-config {os.fspath(path)!r} cannot be read: {error}.",
                what_to_do="Point the connection's arcadia_config at a readable YAML file.",
            ) from error
        return cls.from_yaml(text)

    @classmethod
    def parse(cls, raw: object) -> ArcadiaConfig:
        """Read the already decoded YAML document."""
        known = ("gateway", "rayClusters", *sorted(ARCADIA_ONLY_KEYS))
        entry = mapping(raw, "arcadia-config", known)
        clusters = entry.get("rayClusters") or []
        if not isinstance(clusters, list):
            raise ArcadiaConfigError(
                f"rayClusters is a {type(clusters).__name__}, not a list.",
                what_to_do="Write it as a YAML list of {name, headAddress, pythonVersion}.",
            )
        parsed = tuple(RayCluster.parse(item, index) for index, item in enumerate(clusters))
        names = Counter(cluster.name for cluster in parsed)
        if twice := [name for name, times in names.items() if times > 1]:
            raise ArcadiaConfigError(
                f"rayClusters names {twice[0]!r} twice.", what_to_do="Give every Ray cluster its own name."
            )
        return cls(Gateway.parse(entry.get("gateway")), parsed)

    def select(self, ray_cluster: int | str = 0) -> tuple[int, RayCluster]:
        """The cluster chosen by index (``RAY_CLUSTER_INDEX``) or by name, with its index.

        Raises :class:`ArcadiaConfigError` that names the clusters which exist. ``"auto"`` needs the
        clusters' state and is resolved by ``ray_cluster.provision``.
        """
        if not self.ray_clusters:
            raise ArcadiaConfigError(
                "arcadia-config lists no Ray cluster (rayClusters is empty).",
                what_to_do="Add one with name, headAddress and pythonVersion.",
            )
        exist = ", ".join(f"{i}: {c.name}" for i, c in enumerate(self.ray_clusters))
        if isinstance(ray_cluster, str) and not ray_cluster.strip().isdecimal():
            for index, cluster in enumerate(self.ray_clusters):
                if cluster.name == ray_cluster:
                    return index, cluster
            raise ArcadiaConfigError(
                f"arcadia-config has no Ray cluster named {ray_cluster!r}; it has {exist}.",
                what_to_do="Use one of these names or indexes.",
            )
        index = int(ray_cluster)
        if isinstance(ray_cluster, bool) or not 0 <= index < len(self.ray_clusters):
            raise ArcadiaConfigError(
                f"RAY_CLUSTER_INDEX {ray_cluster} is out of range; arcadia-config has {exist}.",
                what_to_do="Use one of these indexes or names.",
            )
        return index, self.ray_clusters[index]


def _host_port(value: str, default_port: int, where: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or value.endswith("]"):
        return f"{value}:{default_port}"
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ArcadiaConfigError(
            f"{where} is {value!r}, not host:port.", what_to_do="Write e.g. head-svc:6379."
        )
    return value
