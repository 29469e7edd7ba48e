"""The Arcadia page of Airflow's UI: clusters, workers and batches, live, and what can be done about them."""
