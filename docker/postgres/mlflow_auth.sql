-- MLflow keeps its users apart from what they track.
CREATE DATABASE mlflow_auth;
