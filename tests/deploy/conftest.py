"""The cluster that the manifests are held against."""

from tests.loopback_cluster.conftest import cluster, loopback

__all__ = ["cluster", "loopback"]
