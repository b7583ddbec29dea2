"""Verify, repair and inspect shards."""
