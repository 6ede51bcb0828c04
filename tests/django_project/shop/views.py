from asgiref.sync import sync_to_async
from django.db import transaction
from django.http import HttpRequest, HttpResponse

from rabbitevents_django import publish
from tests.django_project.shop.models import Order
from tests.django_project.shop.orders import OutOfStockError, place
from tests.shop import OrderPlaced


def order(request: HttpRequest, order_id: str) -> HttpResponse:
    """Publish in the transaction that ATOMIC_REQUESTS made."""
    Order.objects.create(order_id=order_id)
    publish(OrderPlaced(order_id))
    if "fails" in request.GET:
        raise OutOfStockError(order_id)
    return HttpResponse(status=202)


@transaction.non_atomic_requests
async def order_in_a_coroutine(request: HttpRequest, order_id: str) -> HttpResponse:
    placed = await sync_to_async(place)(order_id)
    return HttpResponse(str(placed.id), status=202)


@transaction.non_atomic_requests
async def order_without_a_thread(request: HttpRequest, order_id: str) -> HttpResponse:
    publish(OrderPlaced(order_id))
    return HttpResponse(status=202)
