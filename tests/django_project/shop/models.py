from __future__ import annotations

from django.db import models


class Order(models.Model):
    order_id: models.CharField[str, str] = models.CharField(max_length=40, unique=True)
