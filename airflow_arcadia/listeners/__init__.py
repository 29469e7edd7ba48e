"""What Airflow tells us of runs and tasks, whatever became of them."""
