"""Hosts that are cut apart are so for each other alone, and nothing of a network stays."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.bed.network import Host, Network, NetworkError


@pytest.fixture
def network() -> Iterator[Network]:
    """A network of three hosts."""
    if shutil.which("ip") is None or shutil.which("nsenter") is None:
        pytest.skip("there is no ip (iproute2), or no nsenter (util-linux)")
    try:
        with Network(3) as made:
            yield made
    except NetworkError as error:
        pytest.skip(f"a network cannot be made here: {error}")


def reaches(one: Host | None, address: str) -> bool:
    """Whether there is a way from a host, or from here, to an address."""
    there = [] if one is None else ["nsenter", f"--net=/run/netns/{one.namespace}", "--"]
    return (
        subprocess.run([*there, "bash", "-c", f": >/dev/udp/{address}/9"], capture_output=True, check=False).returncode
        == 0
    )


def test_two_hosts_are_cut_apart_and_all_others_reach_both(network: Network) -> None:
    one, other, third = network.hosts

    network.cut(one, other)

    assert not reaches(one, other.address)
    assert not reaches(other, one.address)
    assert all(reaches(here, there.address) for here in (third, None) for there in (one, other))
    assert reaches(one, third.address)
    network.heal()
    assert reaches(one, other.address)
    assert reaches(other, one.address)


def test_nothing_stays_of_a_network(network: Network) -> None:
    network.__exit__()

    assert not [host for host in network.hosts if reaches(None, host.address) and _is_here(host)]
    said = subprocess.run(["ip", "-o", "link", "show"], capture_output=True, text=True, check=True).stdout
    assert not [host for host in network.hosts if host.namespace in said]


def _is_here(host: Host) -> bool:
    said = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return host.namespace in said
