"""What runs inside the worker: join Ray, serve vLLM, speak FastChat, watch the lease, leave.

Nothing here imports Airflow: the worker's environment does not have it.
"""
