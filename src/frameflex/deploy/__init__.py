"""Using a trained checkpoint."""
