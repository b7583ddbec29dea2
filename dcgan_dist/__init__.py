"""Distributed DCGAN training on WebDataset shards."""

import os

__version__ = "0.1.0"

# Waiting OpenMP threads must not use the cores that decoding threads and other ranks need: else a CPU step takes six
# times as long. OpenMP reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
