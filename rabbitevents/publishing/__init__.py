"""The way out: a payload becomes an event, the event a message, at once or after a wait."""
