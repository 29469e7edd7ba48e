"""Read by Airflow's components: how they connect to the database that they share."""

ARGUMENTS = {"timeout": 60}
"""Seconds to wait while another one writes."""
