"""From Parquet shards to batches of pictures, as pure functions of (seed, epoch, index)."""
