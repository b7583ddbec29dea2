"""Files behind URLs, and the node-local cache of whole shards."""
