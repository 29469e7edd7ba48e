"""``/v1/files``: what clients upload for their batches, and what these batches write."""
