"""The cluster that these tests run on."""

from tests.loopback_cluster.conftest import cluster, loopback

__all__ = ["cluster", "loopback"]
