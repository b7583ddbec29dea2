"""The algorithm, on one device: torch only. It knows nothing of processes, files or trackers."""
