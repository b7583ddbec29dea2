"""This machine: atomic files, locks, worker processes, limits."""
