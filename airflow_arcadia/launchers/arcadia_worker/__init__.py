"""Run a worker as Arcadia's own Worker resource: settings, manifest, status, launcher."""
