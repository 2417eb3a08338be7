"""Ports for servers that tests start."""

import random
import socket

# Above the ports of Ray's workers, below those that systems hand out to whoever asks for any: a server that
# takes a while to start, as a cluster's last one does, finds its port still free.
_UNTRIED = iter(random.SystemRandom().sample(range(20_000, 32_768), 12_768))


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now; never the same twice."""
    for port in _UNTRIED:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("all ports from 20000 to 32767 of the loopback interface are taken")
