"""Degradation: good answers are taken down while they pass, and stand in later, as the route's fallback says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider.dataplane.policies.last_good import Recorder
from outrider.model.failure import Failure
from outrider.model.messages import Response
from outrider.model.reply import Reply

if TYPE_CHECKING:
    from outrider.dataplane.call import Call
    from outrider.dataplane.downstream.connection import Downstream
    from outrider.dataplane.upstream.connection import ResponseSink, Upstream


def stand_in(call: Call, result: Response | Failure) -> Reply | None:
    """What the route's fallback has in place of this result, if it needs a stand-in."""
    fallback = call.route.fallback
    if fallback is None or not fallback.covers(result):
        return None
    reply = fallback.reply(call, result)
    if reply is not None:
        call.label = "fallback"
    return reply


def record(call: Call, result: Response | Failure) -> None:
    """Begin to take a good answer down, where it may have to stand in for a later one."""
    fallback = call.route.fallback
    if fallback is not None and fallback.last_good is not None and isinstance(result, Response):
        call.recorder = fallback.last_good.recorder(call, result)


def recorded(call: Call, response: Response) -> None:
    """The answer has passed whole."""
    if call.recorder is not None:
        call.recorder.keep(call, response, call.recorder)


class Tee:
    """Passes a body on, and takes it down."""

    __slots__ = ("_recorder", "_sink")

    def __init__(self, sink: Downstream, recorder: Recorder) -> None:
        self._sink = sink
        self._recorder = recorder

    @property
    def write_paused(self) -> bool:
        """As the app's connection says."""
        return self._sink.write_paused

    def write_body(self, pieces: list[bytes]) -> None:
        self._recorder.add(pieces)
        self._sink.write_body(pieces)

    def piped(self, source: Upstream | None) -> None:
        self._sink.piped(source)

    def buffered(self) -> int:
        return self._sink.buffered()


def sink(call: Call) -> ResponseSink:
    """Where the rest of an answer goes: to the app, and past the recorder if there is one."""
    return call.downstream if call.recorder is None else Tee(call.downstream, call.recorder)
