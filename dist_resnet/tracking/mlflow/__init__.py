"""The only door to MLflow of a run: its address, its run, and the delivery of the journal."""
