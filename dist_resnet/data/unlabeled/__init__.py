"""Images without labels, to be classified: image files, or rows of Parquet files, in one fixed order."""
