"""Shards in, batches out: the readers."""
