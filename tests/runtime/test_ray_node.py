"""Which node of a Ray cluster is this host's."""

from airflow_arcadia.runtime.ray_node import local_node

NODES = [
    {"state": "DEAD", "node_ip": "10.0.0.1"},
    {"state": "ALIVE", "node_ip": "10.0.0.2"},
    {"state": "ALIVE", "node_ip": "10.0.0.3"},
]


def test_the_alive_node_with_an_address_of_this_host_is_its_own():
    assert local_node(NODES, {"127.0.0.1", "10.0.0.3"}) == "10.0.0.3"


def test_a_dead_node_and_another_hosts_are_not():
    assert local_node(NODES, {"127.0.0.1", "10.0.0.1"}) is None
