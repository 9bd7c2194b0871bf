"""From Parquet shards to batches of images, as pure functions of (seed, epoch, index)."""
