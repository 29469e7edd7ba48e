"""A loopback Kubernetes API: enough of the real one's manners that the real clients cannot tell."""
