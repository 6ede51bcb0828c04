"""What a RabbitMQ node of our own needs on disk and in its environment."""

import itertools
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trustme

from tests.bed.loopback import LOOPBACK, free_port
from tests.bed.network import Host

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PREFIX: Final = "rbt-"
"""What every folder of ours begins with; the number of the process that made it follows."""

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Layout:
    """Folder, ports, name and secret of one node: all that survives a restart.

    `folder` is the path as we see it, `home` the same folder as the node sees it from inside of `root`. `host` is where
    it runs; None: here.
    """

    name: str
    folder: Path
    home: Path
    root: Path | None
    cookie: str
    port: int
    tls_port: int | None
    http_port: int | None
    distribution_port: int
    epmd_port: int
    host: Host | None = None

    @property
    def address(self) -> str:
        """Where the node listens."""
        return LOOPBACK if self.host is None else self.host.address

    @property
    def log(self) -> Path:
        """The folder of the node's log files."""
        return self.folder / "log"

    @property
    def variables(self) -> Path:
        """A file with variables for the start script, which may be missing; they win over its own (rabbitmq-env.conf)."""
        return self.folder / "variables"

    def command(self, *words: str) -> list[str]:
        """Return `words` as a command that runs where the node runs."""
        there = [] if self.host is None else ["nsenter", f"--net=/run/netns/{self.host.namespace}", "--"]
        return [*there, *([] if self.root is None else ["chroot", str(self.root)]), *words]

    def environment(self) -> dict[str, str]:
        """Return the whole environment of the node and of its tools; ours is not inherited.

        RABBITMQ_ALLOW_INPUT makes the start script become the virtual machine instead of its parent, so that the
        process that we start is the one to kill. The number of schedulers is given because the node boots on one
        processor (see `processes.spawn`) and would count that; they are not bound to it.
        """
        processors = len(os.sched_getaffinity(0))
        schedulers = f"+S {processors}:{processors} +SDcpu {processors}:{processors}"
        here_only = f"-kernel inet_dist_use_interface {{{self.address.replace('.', ',')}}}"
        return {
            "PATH": _PATH,
            "LANG": "C.UTF-8",
            "HOME": str(self.home),
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": self.address,
            "RABBITMQ_USE_LONGNAME": str(self.host is not None).lower(),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_IP_ADDRESS": self.address,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self.distribution_port),
            "RABBITMQ_MNESIA_BASE": str(self.home / "data"),
            "RABBITMQ_LOG_BASE": str(self.home / "log"),
            "RABBITMQ_CONF_ENV_FILE": str(self.home / "variables"),
            "RABBITMQ_CONFIG_FILE": str(self.home / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.home / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.home / "enabled_plugins"),
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_START_ARGS": "-noinput",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{here_only} {schedulers}",
            "RABBITMQ_SCHEDULER_BIND_TYPE": "u",
            "RABBITMQ_CTL_ERL_ARGS": here_only,
        }


DEFAULTS = {"disk_free_limit.absolute": "1MB"}
"""What every node is told: an alarm about the machine's disk, which others use too, is no part of any test."""


def lay_out(
    root: Path | None,
    config: Mapping[str, str],
    advanced: str,
    *,
    tls: bool,
    management: bool = False,
    beside: Layout | None = None,
    host: Host | None = None,
) -> Layout:
    """Make a node's folder, inside of `root` if there is one, with its cookie and its configuration files.

    `beside` is another node whose cookie and name server to share, as the members of a cluster do; on a `host` of its own
    each has its own name server, on the same port. Removes the folders of test runs that were killed before they could.
    """
    parent = parent_folder(root)
    _sweep(parent)
    stem = f"{PREFIX}{os.getpid()}-{next(_numbers)}"
    folder = Path(tempfile.mkdtemp(prefix=f"{stem}-", dir=parent))
    layout = Layout(
        name=f"{stem}@{'localhost' if host is None else host.address}",
        folder=folder,
        home=path_inside(folder, root),
        root=root,
        cookie=beside.cookie if beside else secrets.token_hex(16),
        port=free_port(),
        tls_port=free_port() if tls else None,
        http_port=free_port() if management else None,
        distribution_port=free_port(),
        epmd_port=beside.epmd_port if beside else free_port(),
        host=host,
    )
    _write(layout, config, advanced)
    return layout


def parent_folder(root: Path | None) -> Path:
    """Return where our folders are made."""
    return Path(tempfile.gettempdir()) if root is None else root / "tmp"


def path_inside(folder: Path, root: Path | None) -> Path:
    """Return the path of a folder as what runs inside of ``root`` sees it."""
    return folder if root is None else Path("/") / folder.relative_to(root)


def _write(layout: Layout, config: Mapping[str, str], advanced: str) -> None:
    cookie = layout.folder / ".erlang.cookie"
    cookie.write_text(layout.cookie)
    cookie.chmod(0o400)
    settings = {**DEFAULTS, **_tls_settings(layout), **_management_settings(layout), **config}
    lines = [f"{key} = {value}\n" for key, value in settings.items()]
    (layout.folder / "rabbitmq.conf").write_text("".join(lines))
    (layout.folder / "advanced.config").write_text(f"{advanced}.\n")
    plugins = ["rabbitmq_consistent_hash_exchange", *([] if layout.http_port is None else ["rabbitmq_management"])]
    (layout.folder / "enabled_plugins").write_text(f"[{', '.join(plugins)}].\n")


def _management_settings(layout: Layout) -> dict[str, str]:
    """Return what its HTTP API is told. What it knows is half a second old at most, and not five."""
    if layout.http_port is None:
        return {}
    port = str(layout.http_port)
    return {"management.tcp.ip": LOOPBACK, "management.tcp.port": port, "collect_statistics_interval": "500"}


def _tls_settings(layout: Layout) -> dict[str, str]:
    if layout.tls_port is None:
        return {}
    authority = trustme.CA()
    server = authority.issue_cert("localhost", LOOPBACK)
    authority.cert_pem.write_to_path(layout.folder / "ca.pem")
    server.private_key_pem.write_to_path(layout.folder / "server.key")
    server.cert_chain_pems[0].write_to_path(layout.folder / "server.pem")
    return {
        "listeners.ssl.1": f"{LOOPBACK}:{layout.tls_port}",
        "ssl_options.cacertfile": str(layout.home / "ca.pem"),
        "ssl_options.certfile": str(layout.home / "server.pem"),
        "ssl_options.keyfile": str(layout.home / "server.key"),
        "ssl_options.verify": "verify_none",
        "ssl_options.fail_if_no_peer_cert": "false",
    }


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}*"):
        owner = folder.name.split("-")[1]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(folder, ignore_errors=True)
