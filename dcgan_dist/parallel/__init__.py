"""Many processes: the only part that knows Accelerate and other ranks."""
