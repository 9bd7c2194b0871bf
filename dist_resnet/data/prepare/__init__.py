"""From what people have of an image set to prepared shards."""
