from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from tests.django_project.shop.orders import OutOfStockError, place


class Command(BaseCommand):
    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("order_id", nargs="+")
        parser.add_argument("--fails", action="store_true")
        parser.add_argument("--using", default="default")

    def handle(self, *args: Any, order_id: list[str], fails: bool, using: str, **options: Any) -> None:
        for each in order_id:
            try:
                place(each, fails=fails, using=using)
            except OutOfStockError as error:
                raise CommandError(f"out of stock: {error}") from error
