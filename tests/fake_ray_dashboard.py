"""A Ray dashboard with one node of two GPUs, for tests that need no Ray."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

VERSIONS = {"rayVersion": "2.60.0", "pythonVersion": "3.11.7"}
NODE = {
    "node_id": "a",
    "node_ip": "127.0.0.1",
    "is_head_node": True,
    "state": "ALIVE",
    "resources_total": {"GPU": 2.0},
}


def answers(used: float = 0.0) -> dict[str, Any]:
    """What the dashboard answers, by path.

    :param used: GPUs that are reserved.
    """
    usage = {"a": {"GPU": [used, 2.0]}}
    return {
        "/api/v0/cluster_metadata": {"data": VERSIONS},
        "/api/v0/nodes": {"data": {"result": {"result": [NODE]}}},
        "/api/cluster_status": {"data": {"clusterStatus": {"loadMetricsReport": {"usageByNode": usage}}}},
        "/api/v0/placement_groups": {"data": {"result": {"result": []}}},
    }


@contextlib.contextmanager
def ray_dashboard(used: float = 0.0) -> Iterator[http.server.ThreadingHTTPServer]:
    """The running server; ``server_port`` is its port. ``shutdown`` and ``server_close`` make it go away."""
    told = answers(used)

    class Dashboard(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"result": True, **told[self.path.partition("?")[0]]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
