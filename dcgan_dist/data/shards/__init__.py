"""What a shard is: its members, its index, its manifest, and tars that other programs made."""
