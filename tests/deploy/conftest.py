"""The cluster that the manifests are held against."""

from tests.kubernetes.conftest import cluster, loopback

__all__ = ["cluster", "loopback"]
