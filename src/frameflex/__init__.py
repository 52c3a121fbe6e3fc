"""Action recognition in video: one checkpoint, any frame budget."""
