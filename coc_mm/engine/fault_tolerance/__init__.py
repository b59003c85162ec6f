"""Checkpoints, random states and signals of a training that survives being stopped."""
