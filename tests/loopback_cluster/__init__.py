"""A Kubernetes cluster on loopback, for tests: see README.md in this folder."""
