"""One run, kept and shown: its folder, its checkpoints, its numbers and pictures."""
