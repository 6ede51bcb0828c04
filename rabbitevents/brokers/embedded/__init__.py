"""The embedded broker: a broker, not a mock, for tests and first steps."""
