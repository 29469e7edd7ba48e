"""A process kubelet: runs each container of a pod as a local process. A test fixture and nothing more.

No isolation: a volume is a folder, and where it would be mounted is replaced by that folder in the
container's command, arguments and environment. All pods share this machine's loopback address.
"""
