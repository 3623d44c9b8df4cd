"""Tell systemd how we are: the datagram protocol of sd_notify(3), without a library."""

import os
import socket


def notify(*states: str) -> bool:
    """Send states such as `READY=1`; False where no systemd listens. Never raises."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return False
    # A leading @ stands for the zero byte of Linux's abstract namespace.
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto("\n".join(states).encode(), address)
    except OSError:
        return False
    return True
