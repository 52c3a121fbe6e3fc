"""What happens now: webcams, addresses, standard input."""
