"""The embedded data set: cartoon faces that are painted, never downloaded."""
