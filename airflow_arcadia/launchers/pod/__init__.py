"""Run a worker as a pod: its settings, manifest and launcher."""
