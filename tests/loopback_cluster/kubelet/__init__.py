"""A process kubelet: runs each container of a pod as a local process. A test fixture and nothing more.

No isolation: a volume is a folder, and where it would be mounted is replaced by that folder in the
container's command, arguments, environment and working directory. Memory-backed volumes at /dev/shm are the
machine's. All pods share this machine's loopback address and its ports.
"""
