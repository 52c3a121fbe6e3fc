"""Action recognition in video: one checkpoint, any frame budget."""

__version__ = "0.1.0"
