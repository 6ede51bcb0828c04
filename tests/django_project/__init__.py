"""A Django project with an outbox, run by `tests/test_django.py` as processes."""
