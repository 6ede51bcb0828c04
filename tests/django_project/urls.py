from django.conf import settings
from django.contrib import admin
from django.urls import URLPattern, URLResolver, path

from tests.django_project.shop import views

urlpatterns: list[URLPattern | URLResolver] = [
    path("orders/<str:order_id>", views.order),
    path("later/<str:order_id>", views.order_in_a_coroutine),
    path("wrong/<str:order_id>", views.order_without_a_thread),
]
if settings.ADMIN:
    urlpatterns.append(path("admin/", admin.site.urls))
