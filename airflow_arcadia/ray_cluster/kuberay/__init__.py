"""A Ray cluster made for a run by KubeRay: settings, manifest, status, backend."""
