"""Whether shards are whole, what they hold, and what can be saved of damaged ones."""
