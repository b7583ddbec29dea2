"""Many processes: the only part that talks to Accelerate and to other ranks."""
