"""What all tests share."""

import pytest

pytest.register_assert_rewrite("rabbitevents.testing.bench", "rabbitevents.testing.conformance")

pytest_plugins = ["tests.bed.fixtures"]
