"""The cluster that the manifests are held against."""

from tests.loopback_cluster.conftest import cluster, loopback, stand_ins_are_removed

__all__ = ["cluster", "loopback", "stand_ins_are_removed"]
