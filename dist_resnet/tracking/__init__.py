"""The run's directory, its journal, and the delivery of the journal to MLflow."""
