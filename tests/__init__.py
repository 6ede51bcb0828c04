"""The tests of rabbitevents."""
