"""Sockets on loopback: ports that stay ours while nobody listens, and connections that end by RST."""

import asyncio
import random
import socket
import struct
from pathlib import Path

LOOPBACK = "127.0.0.1"
_FIRST = 20_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """Choose a loopback port that nobody uses, below the range that the kernel gives to clients.

    A port of that range would not do. While a killed node is away, a client that tries its port again and
    again is at last given that very port as its own end, connects to itself, and the node cannot come back.
    Raises OSError when 1,000 tries find none.
    """
    limit = int(_EPHEMERAL.read_text().split()[0]) if _EPHEMERAL.exists() else 32_768
    for _ in range(1_000):
        port = random.randrange(_FIRST, limit)
        if _is_free(port):
            return port
    raise OSError(f"no free port between {_FIRST} and {limit}")


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by RST and forget what was not sent; no effect on one that has ended."""
    if not writer.is_closing():
        linger_none = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_none)
    writer.transport.abort()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
