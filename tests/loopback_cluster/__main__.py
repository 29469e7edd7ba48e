"""A loopback cluster by itself, until it is interrupted: ``python -m tests.loopback_cluster KUBECONFIG``.

The file is written once the cluster answers. With ``ARCADIA_TEST_KUBECONFIG`` naming it, the Kubernetes suite
treats this cluster as any other.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
from pathlib import Path

from tests.conftest import ROOT
from tests.loopback_cluster.cluster import Loopback, loopback_images, write_kubeconfig


def main() -> None:
    """Command line."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with tempfile.TemporaryDirectory(prefix="loopback-cluster-") as folder:
        python = ROOT / ".venv-worker" / "bin" / "python"
        loopback = Loopback(Path(folder) / "cluster", loopback_images(str(python)))
        loopback.start()
        try:
            draft = write_kubeconfig(Path(folder) / "kubeconfig", loopback.url)
            target = Path(sys.argv[1])
            target.with_suffix(".tmp").write_text(draft.read_text())
            target.with_suffix(".tmp").rename(target)
            ended.wait()
        finally:
            loopback.stop()


if __name__ == "__main__":
    main()
