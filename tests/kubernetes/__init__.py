"""The worker in a cluster: one suite for the loopback cluster of this package, and for any real one.

``make test-kubernetes`` runs it on the loopback cluster. With ``ARCADIA_TEST_KUBECONFIG`` it runs against
the cluster of that kubeconfig, in ``ARCADIA_TEST_NAMESPACE``, with the images ``ARCADIA_TEST_WORKER_IMAGE``
and ``ARCADIA_TEST_PYTHON_IMAGE``; tests that need what only the loopback cluster can do are skipped.

What is simulated
    ``api``: the REST verbs, with resourceVersions (409, and 410 after a restart), generations, watches with
    bookmarks, selectors, dry runs, merge, strategic and JSON patches, status and binding subresources,
    deletion with grace, preconditions and propagation policies, and a garbage collector that comes late.
    Strict validation by the types of the official client's models and the rules between fields; custom
    resources by their structural schemas. Admission: what a real server adds (service account token,
    tolerations, defaults), service accounts, priority classes, quotas, Pod Security, RBAC by Roles.
    ``kubelet``: one node ``gpu-node-0`` with 64 CPUs, 512Gi and 2 GPUs. Containers are local processes, with
    init containers, probes, restarts and back-off (0.5 to 4 s), memory limits, logs, last words and events
    in the real words. The scheduler, the Services' addresses, the node controller and the taint manager.
    ``controllers``: stand-ins for KubeRay and Arcadia's operator, which use the API alone and run
    against real clusters, too; what they simplify is told by their modules.

What is not
    Isolation. A volume is a folder: every mount path in a container's command, arguments, environment and
    working directory is replaced by that folder, but a path that is written into a file, or that a program
    has by default, is not. Memory-backed volumes at /dev/shm are the machine's. All pods share 127.0.0.1
    and its ports, so tests choose free ones; a Service's address is 127.x.y.z and names are not resolved.
    Security contexts and users are checked but not acted on; GPUs and CPUs are counted, not given.
    Absent: exec and attach, discovery, server-side apply, ConfigMap updates in running pods, lifecycle hooks,
    sidecar init containers, Deployments and Jobs, preemption, node pressure by itself, authentication.
    A kubelet that is killed leaves its processes behind: this is a fixture, and no place to run workers.

What a test may do to it (:class:`~tests.kubernetes.kubelet.loopback.Loopback`)
    ``stop_api``, ``start_api``, ``api_away``; ``lose_node``, ``return_node``; ``evict``; ``obey``, ``deny``,
    ``obey_all``; ``fail`` for requests that are answered by an error; ``images``, ``claim_folder``,
    ``fill_claim``, ``pids``; and ``api.requests``, ``api.access.used`` to see what was asked for.
"""
