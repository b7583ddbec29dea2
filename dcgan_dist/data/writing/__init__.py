"""Images in, shards out: `dcgan-dist shard`."""
