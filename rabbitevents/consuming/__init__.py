"""What happens to a delivery: workers take it, its handler is called, it is settled once, or held."""
