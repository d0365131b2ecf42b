"""Processes of a job meet before Paddle connects them: Paddle would wait for a missing one for ever."""

import contextlib
import socket
import time

from engine.errors import Lost

PAUSE = 0.1  # seconds between two attempts to reach the first process
ANSWER = 5.0  # seconds that a connection may take to say whose it is
GO = b"go\n"


def meet(rank, number, address, timeout):
    """Wait until all processes have started.

    Args:
        rank, number: of this process, and of all.
        address: "host:port" of the first process, where nobody listens yet.
        timeout: seconds.
    Raises:
        Lost: not all have come, or the first cannot be reached.
    """
    host, _, port = address.rpartition(":")
    until = time.monotonic() + timeout
    if rank == 0:
        _receive(number, int(port), until, timeout)
    else:
        _report_to((host, int(port)), rank, until, timeout)


def _receive(number, port, until, timeout):
    missing, connections = set(range(1, number)), []
    with contextlib.ExitStack() as opened:
        try:
            server = opened.enter_context(socket.create_server(("", port)))
        except OSError as error:
            raise Lost(f"process 0 cannot listen on port {port} ({error}), where the others look for it.") from error
        while missing:
            server.settimeout(max(until - time.monotonic(), 0.001))
            try:
                connection = opened.enter_context(server.accept()[0])
                connection.settimeout(min(max(until - time.monotonic(), 0.001), ANSWER))
                missing.discard(int(connection.makefile().readline() or -1))
                connections.append(connection)
            except (OSError, ValueError) as error:
                if time.monotonic() >= until:
                    names = ", ".join(map(str, sorted(missing)))
                    raise Lost(
                        f"process {names} of {number} did not start within {timeout} s (runner.processes_timeout)."
                    ) from error
        server.close()  # before the others look for Paddle's store at this port
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(GO)
                connection.recv(1)  # the other side closes first, or the port would not be free for Paddle


def _report_to(address, rank, until, timeout):
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(address, 1.0) as connection:
            connection.settimeout(max(until - time.monotonic(), 0.001) + 1.0)  # the first one names who is missing
            connection.sendall(f"{rank}\n".encode())
            if connection.recv(len(GO)):
                return
        time.sleep(PAUSE)
    raise Lost(
        f"process 0 cannot be reached at {address[0]}:{address[1]}, or not all processes started within {timeout} s "
        "(runner.processes_timeout)."
    )
