"""The corpus: which images there are, in which order, and how their pixels reach a batch."""
