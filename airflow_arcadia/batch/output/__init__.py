"""Write the answers: paths, committed segments, the job's files, and the merged output."""
