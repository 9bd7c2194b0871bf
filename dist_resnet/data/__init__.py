"""Image sets and their batches: from Parquet shards to the network's input, as pure functions of (seed, epoch, index)."""
