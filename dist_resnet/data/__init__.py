"""Image sets and their batches: from Parquet shards to the network, as pure functions of (seed, epoch, index)."""
