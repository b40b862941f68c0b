"""The two connections of a call, as everything between them sees them. The edges implement these base classes.

They are base classes and not protocols because compiled code calls a method of a base class directly, and a method of a
structural protocol by its name, which costs 50 ns more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from outrider.dataplane.runtime.timers import Timed
from outrider.model.failure import Failure
from outrider.model.messages import Response
from outrider.model.reply import Reply

if TYPE_CHECKING:
    from outrider.dataplane.attempt import Attempt
    from outrider.dataplane.call import Call
    from outrider.dataplane.shared import Shared
    from outrider.dataplane.tunnel import Tunnel


class Connection(Timed):
    """A connection that bytes are written to and read from. `write_paused`: the other side is slow to take them."""

    __slots__ = ("write_paused",)

    write_paused: bool

    def write(self, data: bytes) -> None:
        """Send these bytes."""
        raise NotImplementedError

    def pause_reading(self) -> None:
        """Read nothing for now."""
        raise NotImplementedError

    def resume_reading(self) -> None:
        """Read on."""
        raise NotImplementedError

    def end_writing(self) -> None:
        """Tell the other side that no more will come."""
        raise NotImplementedError

    def leave(self) -> None:
        """Close, once everything written has been sent."""
        raise NotImplementedError


class BodyTap:
    """Sees the body of an answer while it passes."""

    __slots__ = ()

    def add(self, pieces: list[bytes]) -> None:
        """The next pieces of the body."""
        raise NotImplementedError


class AppConnection(Connection):
    """The connection that a call came in on.

    `peer_names` are the names in the verified certificate of the other side; `resume_call` continues the coroutine of
    the call under way.
    """

    __slots__ = ("peer_names", "resume_call", "shared")

    shared: Shared
    peer_names: tuple[str, ...]
    resume_call: Callable[[], None]

    def peer_address(self) -> bytes:
        """The IP address of the other side; empty if it has none (a Unix socket)."""
        raise NotImplementedError

    def give_up(self, call: Call, failure: Failure) -> None:
        """Stop this call, if it is under way, because nobody waits for its answer."""
        raise NotImplementedError

    def pause_body(self) -> None:
        """The target cannot take more of the request body."""
        raise NotImplementedError

    def resume_body(self) -> None:
        """The target can take more of the request body."""
        raise NotImplementedError

    def send_whole(self, call: Call, response: Response) -> None:
        """Head and body of a complete answer, in one write."""
        raise NotImplementedError

    def send_head(self, call: Call, response: Response) -> None:
        """Head and first part of an answer whose rest will follow."""
        raise NotImplementedError

    def write_body(self, pieces: list[bytes]) -> None:
        """The next part of the answer's body."""
        raise NotImplementedError

    def send_end(self, response: Response) -> None:
        """The answer is complete."""
        raise NotImplementedError

    def send_reply(self, call: Call, reply: Reply) -> None:
        """A whole answer made by Outrider."""
        raise NotImplementedError

    def write_interim(self, response: Response) -> None:
        """An informational answer (1xx), if the app can take it."""
        raise NotImplementedError

    def switch(self, call: Call, response: Response, tunnel: Tunnel) -> None:
        """Tell the app that the target has switched protocols; from now on bytes go through the tunnel."""
        raise NotImplementedError

    def abort(self) -> None:
        """Break the answer off visibly: reset the connection instead of closing it in order."""
        raise NotImplementedError

    def set_source(self, source: TargetConnection | None) -> None:
        """From now on tell `source` when to pause and resume reading."""
        raise NotImplementedError

    def unsent_bytes(self) -> int:
        """Bytes written to the app that it has not taken yet."""
        raise NotImplementedError


class TargetConnection(Connection):
    """A connection to a target, with at most one exchange at a time.

    `settled`: there is news for the call: the head of an answer, the end of its body, or a `failure`. `reused`: an
    earlier exchange used this connection. `raw`: for a tunnel only, without HTTP.
    """

    __slots__ = ("alive", "failure", "raw", "response", "reused", "settled")

    alive: bool
    failure: Failure | None
    raw: bool
    response: Response
    reused: bool
    settled: bool

    def begin(self, attempt: Attempt, due: float) -> None:
        """Take the connection for one exchange; waiting for the head ends at `due` (monotonic seconds)."""
        raise NotImplementedError

    def connected(self) -> None:
        """Make the answer to CONNECT: there is a connection."""
        raise NotImplementedError

    def rearm(self, due: float) -> None:
        """Move the end of the wait for the head to `due` (monotonic seconds)."""
        raise NotImplementedError

    def watch_upload(self, now: float) -> None:
        """The app has sent all of the request: look soon whether the target is taking it."""
        raise NotImplementedError

    def finish_upload(self) -> None:
        """The target has answered before it had all of the request, and may go on taking it; `settled` is set anew when
        the upload is over."""
        raise NotImplementedError

    def upload_finished(self) -> bool:
        """The app has sent all of the request; returns whether anything was waiting for that."""
        raise NotImplementedError

    def pipe(self, app: AppConnection, tap: BodyTap | None) -> None:
        """Let the rest of the body flow to the app, past `tap`; `settled` is set anew at its end."""
        raise NotImplementedError

    def join(self, tunnel: Tunnel) -> None:
        """From now on bytes go through the tunnel."""
        raise NotImplementedError

    def untouched(self) -> bool:
        """Whether the target has provably not acted on the request of this exchange."""
        raise NotImplementedError

    def end(self, now: float) -> None:
        """Give the connection up: back to the pool if it is provably clean, closed otherwise."""
        raise NotImplementedError


class Target:
    """One address that a call can go to. `name` is `host:port`."""

    __slots__ = ("name",)

    name: str
