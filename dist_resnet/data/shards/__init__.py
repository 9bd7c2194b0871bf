"""Parquet shards of encoded images and labels, as one indexed split."""
