"""Publishing from code that is not asynchronous: Django, Flask, scripts.

::

    bus = SyncBus("amqp://localhost", name="shop")  # connects nowhere yet

    def view(request):
        bus.publish(OrderPlaced("o-1"))  # returns once the broker has taken responsibility

Behind it is a `Bus` on an event loop of its own, in one daemon thread for each process: whoever forks (gunicorn's
workers, multiprocessing) leaves the parent's connection to the parent, and the child makes its own when it first
publishes. It needs threads that are threads, and so does not go with gevent's patched ones.
"""

from rabbitevents.sync.bus import SyncBus

__all__ = ["SyncBus"]
