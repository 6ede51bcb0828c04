"""What an event says: payload classes, and their bytes."""
