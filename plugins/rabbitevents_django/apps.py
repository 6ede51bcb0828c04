"""The app, as ``INSTALLED_APPS`` has it."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core.checks import Tags, register
from django.core.signals import setting_changed

from rabbitevents_django.checks import check_settings
from rabbitevents_django.configuration import forget


class RabbitEventsConfig(AppConfig):
    """``INSTALLED_APPS = [..., "rabbitevents_django"]``."""

    name = "rabbitevents_django"
    verbose_name = "Events"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Have the settings checked at the start, and read again where a test changes them."""
        register(check_settings, Tags.compatibility)
        setting_changed.connect(_changed, dispatch_uid="rabbitevents_django")


def _changed(*, setting: str, **_said: Any) -> None:
    if setting == "RABBITEVENTS":
        forget()
