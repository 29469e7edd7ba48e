"""Ways to run a worker: as a local process, a pod, or Arcadia's own Worker resource."""
