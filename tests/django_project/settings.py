"""What differs from run to run is said by the environment, as JSON."""

import json
import os
import sys
from typing import Any

DATABASES: dict[str, Any] = json.loads(os.environ["SHOP_DATABASES"])
DATABASES["default"].setdefault("ATOMIC_REQUESTS", True)
for _database in DATABASES.values():
    _database.setdefault("OPTIONS", {})
    if _database["ENGINE"].endswith("sqlite3"):
        _database["OPTIONS"].setdefault("transaction_mode", "IMMEDIATE")

if "SHOP_RABBITEVENTS" in os.environ:
    RABBITEVENTS: Any = json.loads(os.environ["SHOP_RABBITEVENTS"])

ADMIN = ("admin", "auth", "contenttypes", "messages", "sessions") if "test" in sys.argv else ()
"""What only the project's own tests look at: processes are faster without."""

INSTALLED_APPS = [
    *(f"django.contrib.{name}" for name in ADMIN),
    "rabbitevents_django",
    "tests.django_project.shop",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
ROOT_URLCONF = "tests.django_project.urls"
STATIC_URL = "static/"
SECRET_KEY = "for the tests"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
