"""Access to a Kubernetes cluster: requests and their errors, leases, and what the status of a pod means."""
