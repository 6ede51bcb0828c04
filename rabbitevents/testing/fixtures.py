"""The pytest plugin: fixtures that every project with rabbitevents installed has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.register_assert_rewrite("rabbitevents.testing.bench", "rabbitevents.testing.conformance")

if TYPE_CHECKING:
    from rabbitevents.brokers.embedded.broker import EmbeddedBroker


@pytest.fixture
def embedded_broker() -> EmbeddedBroker:
    """Return a fresh embedded broker: ``async with running(bus, broker=embedded_broker) as probe``."""
    from rabbitevents.brokers.embedded.broker import (
        EmbeddedBroker,  # here, so that other projects' runs do not import it
    )

    return EmbeddedBroker()
