"""Which videos, which frames, which pixels."""
