"""Videos and streams into frames: knows nothing of clips or classes."""
