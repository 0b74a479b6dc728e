"""Refuses every connection that leaves this machine, so that a test cannot need the network."""

import functools
import ipaddress
import socket
from collections.abc import Callable
from typing import Any


class NetworkBlocked(OSError):
    """A test tried to reach something other than this machine."""


def is_loopback(host: Any) -> bool:
    """Say whether `host` (a name or address, as str, bytes or None) is this machine."""
    if isinstance(host, (bytes, bytearray)):
        host = bytes(host).decode("ascii", "replace")
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host).split("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse_unless_loopback(host: Any) -> None:
    if not is_loopback(host):
        raise NetworkBlocked(
            f"a test tried to reach {host!r}: tests work offline, so ship or make the data it needs"
        )


def _guard_host(call: Callable) -> Callable:
    """Guard a function whose first argument is a host name."""

    @functools.wraps(call)
    def guarded(host: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_unless_loopback(host)
        return call(host, *args, **kwargs)

    return guarded


def _guard_address(call: Callable) -> Callable:
    """Guard a socket method whose last positional argument is an address."""

    @functools.wraps(call)
    def guarded(self: socket.socket, *args: Any) -> Any:
        address = args[-1] if args else None
        # An address that is not (host, port, …) belongs to a socket on this machine (AF_UNIX).
        if isinstance(address, tuple) and self.family in (socket.AF_INET, socket.AF_INET6):
            _refuse_unless_loopback(address[0])
        return call(self, *args)

    return guarded


def _guard_create_connection(call: Callable) -> Callable:
    @functools.wraps(call)
    def guarded(address: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_unless_loopback(address[0])
        return call(address, *args, **kwargs)

    return guarded


def install() -> None:
    """Put the guards in place for the rest of the process (once, however often it is called)."""
    if getattr(socket, "_network_blocked", False):
        return
    for name in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, name, _guard_address(getattr(socket.socket, name)))
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        setattr(socket, name, _guard_host(getattr(socket, name)))
    socket.create_connection = _guard_create_connection(socket.create_connection)
    socket._network_blocked = True
