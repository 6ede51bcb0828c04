"""The project's own tests, as its authors would write them: ``python -m django test tests.django_project.suite``."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

import pytest
from attrs import frozen
from django.contrib.auth.models import User
from django.core.exceptions import SynchronousOnlyOperation
from django.core.management import CommandError, call_command
from django.db import connections, transaction
from django.test import SimpleTestCase, TestCase, TransactionTestCase, override_settings

from rabbitevents import ConfigurationError, EncodeError, Event, event
from rabbitevents_django import publish
from rabbitevents_django.checks import check_settings
from rabbitevents_django.models import OutboxRow
from rabbitevents_django.testing import captured_events
from rabbitevents_outbox import TransactionError
from tests.django_project.shop.models import Order
from tests.django_project.shop.orders import OutOfStockError, place
from tests.shop import OrderPlaced

OTHER = "other"
PASSWORD = "marker-in-the-password"


@event("price.changed")
@frozen
class PriceChanged:
    price: Any


class InATestCase(TestCase):
    databases: set[str] | Literal["__all__"] = "__all__"

    def test_an_event_is_captured_though_nothing_is_committed(self) -> None:
        with captured_events() as events:
            placed = place("o-1")

        assert events.published(OrderPlaced) == [OrderPlaced("o-1")]
        assert [each.id for each in events.messages] == [str(placed.id)]
        assert placed.metadata.source == "shop"

    def test_what_was_captured_may_be_asked_inside_and_stays(self) -> None:
        with captured_events() as events:
            place("o-1")
            inside = events.published(OrderPlaced)
        place("o-2")

        assert inside == [OrderPlaced("o-1")]
        assert events.published(OrderPlaced) == inside

    def test_what_was_published_before_is_not_captured(self) -> None:
        place("o-1")

        with captured_events() as events:
            place("o-2")

        assert events.published(OrderPlaced) == [OrderPlaced("o-2")]

    def test_an_event_that_was_rolled_back_is_not_captured(self) -> None:
        with captured_events() as events:
            with pytest.raises(OutOfStockError):
                place("o-1", fails=True)
            place("o-2")

        assert events.published(OrderPlaced) == [OrderPlaced("o-2")]

    def test_a_savepoint_that_was_rolled_back_takes_its_events_along(self) -> None:
        with captured_events() as events, transaction.atomic():
            publish(OrderPlaced("outer"))
            with pytest.raises(OutOfStockError):
                place("inner", fails=True)

        assert events.published(OrderPlaced) == [OrderPlaced("outer")]

    def test_what_is_said_of_an_event_travels_with_it(self) -> None:
        with captured_events() as events, transaction.atomic():
            said = publish(
                OrderPlaced("o-1"),
                delay=timedelta(minutes=5),
                metadata={"tenant": "acme"},
                correlation_id="basket-7",
                exchange=None,
                key="orders.acme",
            )

        (message,) = events.messages
        assert (message.after, message.routing_key) == (timedelta(minutes=5), "orders.acme")
        assert (said.metadata.extra["tenant"], said.metadata.correlation_id) == ("acme", "basket-7")

    def test_an_event_may_be_named_by_its_author(self) -> None:
        with transaction.atomic():
            first = publish(OrderPlaced("o-1"), id="order o-1")
            again = publish(OrderPlaced("o-1"), id="order o-1")

        assert first.id == again.id

    def test_several_events_are_one_statement_and_a_list(self) -> None:
        orders = [OrderPlaced(f"o-{number}") for number in range(3)]

        with captured_events() as events, transaction.atomic(), self.assertNumQueries(1):
            published = publish(orders[0], orders[1], orders[2])

        assert [each.payload for each in published] == orders
        assert events.published(OrderPlaced) == orders

    def test_thousands_of_events_are_published_in_order(self) -> None:
        if connections["default"].vendor == "sqlite":  # Debian's takes more parameters than most do
            connections["default"].connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 32_766)
        orders = [OrderPlaced(f"o-{number}") for number in range(4001)]

        with captured_events() as events, transaction.atomic():
            publish(*orders)

        assert events.published(OrderPlaced) == orders

    def test_an_event_in_its_envelope_keeps_it(self) -> None:
        with captured_events() as events, transaction.atomic():
            first: Event[OrderPlaced] = publish(OrderPlaced("o-1"))
            publish(first)

        assert [each.id for each in events.messages] == [str(first.id)] * 2

    def test_another_database_has_its_own_events(self) -> None:
        with captured_events() as events, captured_events(OTHER) as others:
            place("o-1", using=OTHER)

        assert events.messages == []
        assert others.published(OrderPlaced) == [OrderPlaced("o-1")]

    def test_publishing_outside_of_atomic_is_refused_though_a_test_case_is_around_it(self) -> None:
        with (
            captured_events() as events,
            self.assertRaisesMessage(TransactionError, "with transaction.atomic(using='def"),
        ):
            publish(OrderPlaced("o-1"))

        assert events.messages == []

    def test_publishing_in_the_transaction_of_another_database_is_refused_with_its_name(self) -> None:
        with transaction.atomic(using=OTHER), self.assertRaisesMessage(TransactionError, "say using='other'"):
            publish(OrderPlaced("o-1"))

    def test_a_payload_that_cannot_be_written_fails_before_anything_is_written(self) -> None:
        with (
            captured_events() as events,
            transaction.atomic(),
            self.assertNumQueries(0),
            pytest.raises(EncodeError),
        ):
            publish(OrderPlaced("o-1"), PriceChanged(float("nan")))

        assert events.messages == []

    def test_what_cannot_be_meant_is_refused(self) -> None:
        timeout: dict[str, Any] = {"timeout": 5}
        wrong: list[tuple[Any, str]] = [
            (lambda: publish(*[]), "no events"),
            (lambda: publish("text"), "@event"),
            (lambda: publish([OrderPlaced("o-1")]), "publish(*events)"),
            (lambda: publish((OrderPlaced("o-1"),)), "publish(*events)"),
            (lambda: publish(OrderPlaced("o-1"), OrderPlaced("o-2"), id="one"), "an id is one event's alone"),
            (lambda: publish(OrderPlaced("o-1"), **timeout), "waits for nothing"),
            (lambda: publish(OrderPlaced("o-1"), delay=-float("inf")), "delay"),
            (lambda: publish(OrderPlaced("o-1"), using="third"), "'third' is none of the databases"),
        ]
        for call, said in wrong:
            with self.subTest(said), transaction.atomic(), self.assertRaisesMessage(ConfigurationError, said):
                call()

    def test_settings_that_are_wrong_are_said_where_they_are_needed(self) -> None:
        with (
            override_settings(RABBITEVENTS={"NAM": "shop"}),
            transaction.atomic(),
            self.assertRaisesMessage(ConfigurationError, "RABBITEVENTS has 'NAM'"),
        ):
            publish(OrderPlaced("o-1"))
        place("o-2")

    # --- views ---

    def test_a_view_publishes_in_its_requests_transaction(self) -> None:
        with captured_events() as events:
            answer = self.client.post("/orders/o-1")

        assert answer.status_code == 202
        assert events.published(OrderPlaced) == [OrderPlaced("o-1")]

    def test_a_request_that_fails_publishes_nothing(self) -> None:
        self.client.raise_request_exception = False

        with captured_events() as events:
            answer = self.client.post("/orders/o-1?fails")

        assert answer.status_code == 500
        assert events.messages == []
        assert not Order.objects.exists()

    async def test_a_coroutine_is_told_to_use_a_thread(self) -> None:
        with self.assertRaisesMessage(SynchronousOnlyOperation, "sync_to_async(that_function)"):
            await self.async_client.post("/wrong/o-1")

    # --- the admin ---

    def test_the_admin_lists_events_by_state_and_does_not_show_what_they_say(self) -> None:
        self.client.force_login(User.objects.create_superuser("root"))
        with transaction.atomic():
            rows = [publish(OrderPlaced("secret-order"), key=name) for name in ("waits", "failed", "died", "went")]
        ids = [str(each.id) for each in rows]
        now = OutboxRow.objects.get(event_id=ids[0]).created_at
        OutboxRow.objects.filter(event_id=ids[1]).update(attempts=1, last_error="refused")
        OutboxRow.objects.filter(event_id=ids[2]).update(attempts=10, dead_at=now)
        OutboxRow.objects.filter(event_id=ids[3]).update(sent_at=now)
        where = "/admin/rabbitevents_django/outboxrow/"

        counts = {
            state: self.client.get(where, {"state": state}).context["cl"].result_count
            for state in ("waiting", "failed", "dead", "sent", "nonsense")
        }
        page = self.client.get(f"{where}{OutboxRow.objects.earliest('id').pk}/change/")

        assert counts == {"waiting": 1, "failed": 1, "dead": 1, "sent": 1, "nonsense": 4}
        self.assertContains(self.client.get(where), "order.placed")
        self.assertContains(page, ids[0])
        self.assertNotContains(page, "&quot;secret-order")
        assert self.client.get(f"{where}add/").status_code == 403
        assert self.client.post(f"{where}{OutboxRow.objects.earliest('id').pk}/delete/").status_code == 403


class WithCommits(TransactionTestCase):
    databases: set[str] | Literal["__all__"] = "__all__"

    def test_what_is_committed_is_captured_and_what_is_rolled_back_is_not(self) -> None:
        with captured_events() as events:
            place("o-1")
            with pytest.raises(OutOfStockError):
                place("o-2", fails=True)

        assert events.published(OrderPlaced) == [OrderPlaced("o-1")]
        assert OutboxRow.objects.count() == 1

    def test_each_test_begins_with_an_empty_table(self) -> None:
        assert OutboxRow.objects.count() == 0
        place("o-1")

    def test_publishing_after_the_commit_is_refused(self) -> None:
        with pytest.raises(TransactionError), transaction.atomic():
            transaction.on_commit(lambda: publish(OrderPlaced("o-1")))

        with pytest.raises(TransactionError):
            publish(OrderPlaced("o-2"))

    async def test_an_async_view_publishes_in_a_thread(self) -> None:
        answer = await self.async_client.post("/later/o-1")

        row = await OutboxRow.objects.aget()
        assert (answer.status_code, answer.content.decode()) == (202, str(row.event_id))

    def test_a_table_that_is_missing_is_said_with_the_command_that_makes_it(self) -> None:
        call_command("migrate", "rabbitevents_django", "zero", verbosity=0)
        try:
            with self.assertRaisesMessage(
                ConfigurationError, "manage.py migrate rabbitevents_django --database default"
            ):
                place("o-1")
        finally:
            call_command("migrate", "rabbitevents_django", verbosity=0)

        assert not Order.objects.exists()
        place("o-2")


WRONG_SETTINGS: list[tuple[Any, str]] = [
    (None, "E001 RABBITEVENTS is missing in the settings: say RABBITEVENTS = {"),
    ([], "E001 RABBITEVENTS is a list: say a dict"),
    ({}, "E001 RABBITEVENTS has no NAME"),
    ({"NAME": " "}, "E001 RABBITEVENTS: NAME is blank"),
    ({"NAME": "shop", "ULR": "amqp://localhost"}, "E001 RABBITEVENTS has 'ULR': it takes NAME, URL"),
    ({"NAME": "shop", "EXCHANGE": 3}, "E001 RABBITEVENTS: EXCHANGE=3: say a text"),
    ({"NAME": "shop", "URL": f"http://shop:{PASSWORD}@localhost"}, "E001 "),
    ({"NAME": "shop", "URL": f"amqp://shop:{PASSWORD}@localhost:port"}, "E001 "),
    ({"NAME": "shop", "URL": 5672}, "E001 "),
    ({"NAME": "shop", "URL": "memory://"}, "E001 memory:// is a broker inside of one process"),
    ({"NAME": "shop", "DATABASES": "default"}, "E001 RABBITEVENTS: DATABASES is text: it takes a list"),
    ({"NAME": "shop", "DATABASES": ["third"]}, "E002 RABBITEVENTS: the database 'third' cannot be had"),
    ({"NAME": "shop", "BATCH": 0}, "E003 RABBITEVENTS: Outbox: batch=0: say a whole number, 1 to 5000"),
    ({"NAME": "shop", "KEEP": "a day"}, "E003 RABBITEVENTS: Outbox: keep is text: say 30 (seconds)"),
]

WRONG_RELAYS: list[tuple[dict[str, Any], str]] = [
    ({"url": None}, "no broker is said: add URL"),
    ({"url": "memory://"}, "memory:// is a broker inside of one process"),
    ({"url": f"http://shop:{PASSWORD}@localhost"}, "amqp://"),
    ({"url": "amqp://localhost", "database": "third"}, "'third' is none of the databases"),
]


class WrittenWrong(SimpleTestCase):
    def test_settings_that_are_wrong_are_said_at_the_start(self) -> None:
        for told, said in WRONG_SETTINGS:
            with self.subTest(said), override_settings(RABBITEVENTS=told):
                (found, *_) = check_settings()

                assert f"{found.id} {found.msg}".startswith(f"rabbitevents.{said}")
                assert PASSWORD not in str(found)

    def test_a_relay_that_cannot_be_meant_says_so(self) -> None:
        for told, said in WRONG_RELAYS:
            with (
                self.subTest(said),
                override_settings(RABBITEVENTS={"NAME": "shop"}),
                self.settings_of_a_file(),
                self.assertRaisesMessage(CommandError, said) as caught,
            ):
                call_command("relay_events", **told)
            assert PASSWORD not in str(caught.exception)

    def test_a_database_in_memory_is_refused(self) -> None:
        if connections["default"].vendor != "sqlite":
            self.skipTest("only SQLite has them")
        with self.assertRaisesMessage(CommandError, "is in memory, which no other process sees"):
            call_command("relay_events", url="amqp://localhost")

    @contextmanager
    def settings_of_a_file(self) -> Generator[None]:
        """Have SQLite's database in a file, which the tests' own is not."""
        told = connections["default"].settings_dict
        before = told["NAME"]
        told["NAME"] = before if connections["default"].vendor == "postgresql" else "shop.sqlite3"
        try:
            yield
        finally:
            told["NAME"] = before
