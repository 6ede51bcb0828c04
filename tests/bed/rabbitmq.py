"""A RabbitMQ node that belongs to the tests: what they ask of it beyond being there.

Neither mirakuru nor pytest-rabbitmq runs it. mirakuru ends every process that inherited its environment, with the
name server that nodes share among them, waits for a port and not for a greeting, and leaves its processes behind when
the test run is killed; pytest-rabbitmq adds one node with the machine's own configuration and no virtual hosts, and
can neither kill nor suspend it.
"""

import itertools
import re
import time
from asyncio import to_thread
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

from tests.bed.loopback import LOOPBACK
from tests.bed.node import Node, NodeError

_WHO = "<<116,101,115,116>>"  # "test": RabbitMQ wants to know who acts


class QueueCounts(NamedTuple):
    """What a queue holds: messages ready, messages delivered and not yet settled, and how many consumers."""

    ready: int
    unacked: int
    consumers: int


class RabbitNode(Node):
    """A node with the helpers that tests need. A virtual host is named by any URL that leads to it."""

    _vhosts = itertools.count(1)

    @property
    def url(self) -> str:
        """The AMQP URL of the default virtual host, as guest."""
        return f"amqp://guest:guest@{self.layout.address}:{self.port}/"

    @property
    def tls_url(self) -> str:
        """The same over TLS; raises NodeError for a node without a TLS listener."""
        if self.layout.tls_port is None:
            raise NodeError("this node was made without tls=True")
        return f"amqps://guest:guest@localhost:{self.layout.tls_port}/"

    @property
    def http_url(self) -> str:
        """Where its management API is; raises NodeError for a node without one."""
        if self.layout.http_port is None:
            raise NodeError("this node was made without management=True")
        return f"http://{LOOPBACK}:{self.layout.http_port}"

    @property
    def ca_file(self) -> Path:
        """The certificate authority (PEM) behind the TLS listener."""
        return self.layout.folder / "ca.pem"

    def add_vhost(self, name: str | None = None) -> str:
        """Make a virtual host where guest may do everything (15 ms), and return its URL."""
        name = name or f"vhost-{next(self._vhosts)}"
        self.eval(f"rabbit_vhost:add({_binary(name)}, {_WHO})")
        url = f"{self.url}{quote(name, safe='')}"
        self.set_permissions(url)
        return url

    def delete_vhost(self, url: str) -> None:
        """Delete a virtual host with all that is in it; its connections are closed by the node."""
        self.eval(f"rabbit_vhost:delete({_vhost(url)}, {_WHO})")

    def add_user(self, url: str, name: str, password: str) -> str:
        """Make a user, anew where one of that name is left, with no permission anywhere; return `url` for this user."""
        words = f"{_binary(name)}, {_binary(password)}, {_WHO}"
        self.eval(f"""
            case rabbit_auth_backend_internal:lookup_user({_binary(name)}) of
                {{ok, _}} -> rabbit_auth_backend_internal:delete_user({_binary(name)}, {_WHO});
                {{error, not_found}} -> none
            end,
            ok = rabbit_auth_backend_internal:add_user({words})""")
        return url.replace("guest:guest@", f"{quote(name, safe='')}:{quote(password, safe='')}@")

    def set_tag(self, user: str, tag: str) -> None:
        """Give a user one tag, which says what it may see over HTTP: management, monitoring, administrator."""
        self.eval(f"ok = rabbit_auth_backend_internal:set_tags({_binary(user)}, [{tag}], {_WHO})")

    def set_password(self, user: str, password: str) -> None:
        """Change a user's password; connections that are open stay open."""
        words = f"{_binary(user)}, {_binary(password)}, {_WHO}"
        self.eval(f"ok = rabbit_auth_backend_internal:change_password({words})")

    def set_permissions(
        self, url: str, configure: str = ".*", write: str = ".*", read: str = ".*", *, user: str = "guest"
    ) -> None:
        """Set what `user` may do in the virtual host of `url`: three patterns of names; "" forbids all."""
        words = ", ".join(_binary(word) for word in (configure, write, read))
        self.eval(
            f"rabbit_auth_backend_internal:set_permissions({_binary(user)}, {_vhost(url)}, {words}, {_WHO})",
        )

    def queue_counts(self, name: str, url: str | None = None) -> QueueCounts:
        """Count what is in a queue now, asking the queue itself; raises NodeError when there is no such queue.

        What `rabbitmqctl list_queues` says about a quorum queue is up to 5 s old.
        """
        counts = self.eval(f"""
            {{ok, Q}} = rabbit_amqqueue:lookup({_queue(name, url)}),
            case amqqueue:get_type(Q) of
                rabbit_quorum_queue ->
                    {{ok, {{_, #{{num_ready_messages := R, num_checked_out := U, num_consumers := C}}}}, _}} =
                        ra:local_query(amqqueue:get_pid(Q), fun rabbit_fifo:overview/1),
                    [R, U, C];
                _ ->
                    Items = [messages_ready, messages_unacknowledged, consumers],
                    [Value || {{_, Value}} <- rabbit_amqqueue:info(Q, Items)]
            end""")
        return QueueCounts(*(int(count) for count in re.findall(r"\d+", counts)))

    def delete_queue(self, name: str, url: str | None = None) -> None:
        """Delete a queue behind its users' backs; raises NodeError when there is none."""
        self.eval(f"""
            {{ok, Q}} = rabbit_amqqueue:lookup({_queue(name, url)}),
            {{ok, _}} = rabbit_amqqueue:delete(Q, false, false, {_WHO})""")

    def move_leaders(self) -> int:
        """Have each quorum queue of the cluster led by another member, and return how many changed hands."""
        moved = self.eval("""
            Members = lists:sort([node() | nodes()]),
            Next = fun(Q) ->
                {_, Leader} = amqqueue:get_pid(Q),
                hd([Each || Each <- Members, Each > Leader] ++ Members)
            end,
            length([Q || Q <- rabbit_amqqueue:list(),
                         amqqueue:get_type(Q) =:= rabbit_quorum_queue,
                         lists:member(element(1, rabbit_quorum_queue:transfer_leadership(Q, Next(Q))), [migrated, ok])])""")
        return int(moved)

    def close_all_connections(self, reason: str = "closed by the test") -> int:
        """Close every client's connection with 320 CONNECTION_FORCED and return how many there were."""
        closed = self.eval(f"""
            length([rabbit_networking:close_connection(Pid, binary_to_list({_binary(reason)}))
                    || Pid <- rabbit_networking:connections()])""")
        return int(closed)

    def settle(self) -> None:
        """Write everything that was declared to disk; call it before a kill that is not about declarations.

        RabbitMQ answers a declare before that: of 36 durable queues that were declared up to 0.5 s before a SIGKILL,
        3.10.8 lost 11 and 4.0.5 lost 7, with messages that they had confirmed. After 2 s, or after this, none of 24.
        The names of quorum queues stand in dets tables of their own, which are written when they were left alone.
        """
        self.eval("begin mnesia:sync_log(), [dets:sync(Table) || Table <- dets:all()] end")

    def set_memory_alarm(self, on: bool) -> None:
        """Raise or clear the memory alarm, and wait until it is so (at most 10 s): publishers are blocked by it."""
        watermark = "0.00001" if on else "0.6"
        self.eval(f"vm_memory_monitor:set_vm_memory_high_watermark({watermark})")
        deadline = time.monotonic() + 10
        while (self.eval("rabbit_alarm:get_alarms()") != "[]") != on:
            if time.monotonic() > deadline:
                raise NodeError(f"the memory alarm did not turn {'on' if on else 'off'}")
            time.sleep(0.02)

    async def aqueue_counts(self, name: str, url: str | None = None) -> QueueCounts:
        """See `queue_counts`."""
        return await to_thread(self.queue_counts, name, url)

    async def adelete_queue(self, name: str, url: str | None = None) -> None:
        """See `delete_queue`."""
        await to_thread(self.delete_queue, name, url)

    async def amove_leaders(self) -> int:
        """See `move_leaders`."""
        return await to_thread(self.move_leaders)

    async def aclose_all_connections(self, reason: str = "closed by the test") -> int:
        """See `close_all_connections`."""
        return await to_thread(self.close_all_connections, reason)

    async def asettle(self) -> None:
        """See `settle`."""
        await to_thread(self.settle)

    async def aset_memory_alarm(self, on: bool) -> None:
        """See `set_memory_alarm`."""
        await to_thread(self.set_memory_alarm, on)


def _binary(text: str) -> str:
    return f"<<{','.join(map(str, text.encode()))}>>"


def _vhost(url: str | None) -> str:
    return _binary(unquote(urlsplit(url or "").path.removeprefix("/")) or "/")


def _queue(name: str, url: str | None) -> str:
    return f"rabbit_misc:r({_vhost(url)}, queue, {_binary(name)})"
