"""The cluster that these tests run on."""

from tests.loopback_cluster.conftest import cluster, loopback, stand_ins_are_removed

__all__ = ["cluster", "loopback", "stand_ins_are_removed"]
