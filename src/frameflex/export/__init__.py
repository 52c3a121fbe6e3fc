"""Checkpoints as graphs for other runtimes, and running them."""
