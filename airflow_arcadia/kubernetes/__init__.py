"""What every room needs that works on a Kubernetes cluster: requests, errors, leases, pods' reasons."""
