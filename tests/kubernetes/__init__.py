"""The worker in a cluster: one suite for the loopback cluster, and for any real one.

``make test-kubernetes`` runs it on the loopback cluster. With ``ARCADIA_TEST_KUBECONFIG`` it runs against
the cluster of that kubeconfig, each test in a namespace of its own, with the images
``ARCADIA_TEST_WORKER_IMAGE`` and ``ARCADIA_TEST_PYTHON_IMAGE``; tests that need what only the loopback
cluster can do are skipped. tests/README.md has an example.
"""
