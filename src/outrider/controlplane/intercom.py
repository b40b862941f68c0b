"""What the processes of one sidecar with several workers say to each other.

    supervisor -- a line --> every worker, and the front    orders down, signs of life up
    front      -- visits --> every worker                   connections to its telemetry and admin

All of it goes over pairs of sockets that are inherited, so it needs no file system, no name, and cannot be reached from
outside. A line is made anew with every process; visits outlive the processes at both ends, as each message is a whole
connection (`SCM_RIGHTS`, unix(7)).
"""

from __future__ import annotations

import json
import os
import select
import socket
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

# The kinds of a visit: the keys of the ports that are asked.
TELEMETRY: Final = "telemetry.listen"
ADMIN: Final = "admin.listen"

# What is said on a line. Down: DRAIN, QUIT, STOP, RELOAD, HOLD with a circuit, and to the front DROPPED with a number.
# Up: ALIVE, READY, and of the front DRAIN, QUIT and STANDING with an order.
DRAIN: Final = "drain"  # finish what is in flight, and wait for the app to leave
QUIT: Final = "quit"  # finish what is in flight
STOP: Final = "stop"  # now
RELOAD: Final = "reload"
HOLD: Final = "hold"
ALIVE: Final = "alive"
READY: Final = "ready"
STANDING: Final = "standing"
DROPPED: Final = "dropped"  # so many lines of the supervisor's log were not taken

# Seconds between two signs of life.
BEAT: Final = 2.0
_PIECE = 65536
_LONGEST = 1 << 20  # bytes of one line; more is nothing that we have said


class Line:
    """One end of a connection between two processes, for lines of text. Neither end ever waits for the other."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._rest = b""

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._end.fileno()

    def say(self, words: str) -> bool:
        """Send a line; False if the other process is gone or does not read."""
        data = words.encode() + b"\n"
        try:
            return self._end.send(data) == len(data)
        except OSError:
            return False

    def heard(self) -> list[str] | None:
        """The lines that have come; None once the other process is gone."""
        try:
            data = self._end.recv(_PIECE)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            return None
        if not data or len(self._rest) > _LONGEST:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines]

    def close(self) -> None:
        """Let go of it."""
        self._end.close()


class Visits:
    """How the front connects to one worker. `front` and `worker` are the two ends; every process keeps both open, so
    that either may be started anew."""

    def __init__(self) -> None:
        self.front, self.worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.front.setblocking(False)
        self.worker.setblocking(False)

    def visit(self, kind: str) -> socket.socket:
        """For the front: a new connection to the worker's server of this kind, TELEMETRY or ADMIN.
        Raises OSError if the worker has not taken the ones before."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self.front, [kind.encode()], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        ours.setblocking(False)
        return ours

    def arrivals(self) -> list[tuple[str, socket.socket]]:
        """For the worker: the connections that have come, less those that the front has given up already. They were
        meant for the worker before this one, and their orders have been reported as not taken."""
        found: list[tuple[str, socket.socket]] = []
        while True:
            try:
                kind, passed = _receive(self.worker)
            except OSError:
                return found
            for one in passed:
                if _is_given_up(one):
                    one.close()
                else:
                    found.append((kind, one))


def _receive(end: socket.socket) -> tuple[str, list[socket.socket]]:
    data, numbers, _, _ = socket.recv_fds(end, 64, 1)
    for number in numbers:
        os.set_inheritable(number, False)
    return data.decode("ascii", "replace"), [socket.socket(fileno=number) for number in numbers]


def _is_given_up(one: socket.socket) -> bool:
    poller = select.poll()
    poller.register(one, select.POLLHUP | select.POLLERR)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poller.poll(0))


@dataclass(slots=True)
class Standing:
    """Orders that hold for workers to come, too. Kept by the supervisor, and inherited by what it starts.

    `circuits` are actions by name; `faults` are orders as JSON has them, with the monotonic time at which they end.
    """

    circuits: dict[str, str] = field(default_factory=dict)
    faults: list[tuple[dict[str, Any], float]] = field(default_factory=list)

    def note(self, text: str) -> tuple[str, str] | None:
        """Keep an order that the front has passed on. Returns `(circuit, action)` if it is about a circuit."""
        order = json.loads(text)
        if "circuit" in order:
            name, action = str(order["circuit"]), str(order["action"])
            if action == "reset":
                self.circuits.pop(name, None)
            else:
                self.circuits[name] = action
            return name, action
        if "fault" in order:
            now = monotonic()
            self.faults = [one for one in self.faults if one[1] > now]
            self.faults.append((order["fault"], float(order["until"])))
        elif "cleared" in order:
            service = order["cleared"]
            self.faults = [one for one in self.faults if service not in (None, one[0].get("service"))]
        return None


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a worker has from its supervisor: its number, the sockets calls come in on, its line and visits, and the
    orders that stand."""

    number: int
    sockets: dict[str, socket.socket]
    line: Line
    visits: Visits
    standing: Standing
