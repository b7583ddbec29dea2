"""Distributed DCGAN training on WebDataset shards."""

import os

__version__ = "0.1.0"

# Waiting OpenMP threads must not burn the cores that decoding threads and other ranks need: a CPU step takes six times
# as long otherwise, and nothing is lost on an idle machine. OpenMP reads this when torch is loaded: it is set before.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
