"""Remote files, and the cache of complete shards on a node's own disk."""
