"""What happens when in videos of hours."""
