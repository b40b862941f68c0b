"""Request bodies: the same bytes to every sink, kept up to a limit, and pauses that always end."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from outrider.dataplane.body import HIGH_WATER, RequestBody


class Source:
    """The app's connection: pauses and resumes must come in pairs."""

    def __init__(self) -> None:
        self.paused = False
        self.pauses = 0

    def pause_body(self) -> None:
        assert not self.paused
        self.paused = True
        self.pauses += 1

    def resume_body(self) -> None:
        assert self.paused
        self.paused = False


class Sink:
    """The target's connection."""

    def __init__(self, write_paused: bool = False) -> None:
        self.write_paused = write_paused
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data


def make_body(limit: int = 1000, chunked: bool = False) -> RequestBody:
    return RequestBody(Source(), limit, chunked)


def decoded(wire: bytes) -> tuple[bytes, bool]:
    """The content of a chunked body, and whether its end has been seen."""
    content = b""
    while wire:
        size, mark, wire = wire.partition(b"\r\n")
        length = int(size, 16)
        assert mark
        if length == 0:
            assert wire == b"\r\n"
            return content, True
        content += wire[:length]
        assert wire[length : length + 2] == b"\r\n"
        wire = wire[length + 2 :]
    return content, False


def arrive(body: RequestBody, *pieces: bytes, last: bool = False) -> None:
    """Pieces arrive from the app in one turn."""
    for piece in pieces:
        body.feed(piece)
    if last:
        body.finish()
    body.flush()


# ---------------------------------------------------------------- the same bytes


@given(st.lists(st.binary(min_size=1), max_size=20), st.integers(0, 20), st.booleans(), st.integers(0, 400))
def test_any_division_delivers_the_same_bytes(pieces: list[bytes], before: int, chunked: bool, limit: int) -> None:
    """However a body is cut up, and whenever the sink comes, the sink gets exactly the body."""
    body, sink = make_body(limit, chunked), Sink()
    arrive(body, *pieces[:before])
    body.attach(sink)
    for piece in pieces[before:]:
        arrive(body, piece)
    arrive(body, last=True)
    whole = b"".join(pieces)
    assert (decoded(sink.written) if chunked else (sink.written, True)) == (whole, True)
    assert body.sent
    assert body.size == len(whole)
    assert body.replayable == (len(whole) <= limit)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_complete_body_goes_out_in_one_piece(chunked: bool) -> None:
    """A body that is all here can be written together with the head, again and again."""
    body = make_body(chunked=chunked)
    arrive(body, b"ab", b"c", last=True)
    expected = b"3\r\nabc\r\n0\r\n\r\n" if chunked else b"abc"
    assert [body.whole(), body.whole()] == [expected, expected]
    assert body.sent


def test_an_empty_chunked_body_is_only_its_end() -> None:
    """No data means the last chunk alone, once."""
    body = make_body(chunked=True)
    arrive(body, last=True)
    assert body.whole() == b"0\r\n\r\n"
    sink = Sink()
    body.attach(sink)
    assert sink.written == b"0\r\n\r\n"


def test_an_incomplete_body_is_not_whole() -> None:
    """What is still arriving cannot be written in one piece."""
    body = make_body()
    arrive(body, b"ab")
    assert body.whole() is None
    assert not body.sent


def test_a_body_that_was_not_kept_is_not_whole() -> None:
    """A body beyond the limit goes through a sink."""
    body = make_body(limit=1)
    arrive(body, b"ab", last=True)
    assert body.whole() is None


# ---------------------------------------------------------------- kept, up to the limit


def test_kept_up_to_the_limit_and_not_a_byte_more() -> None:
    """At the limit a body can be replayed; one byte later it cannot."""
    body = make_body(limit=4)
    arrive(body, b"ab", b"cd")
    assert body.replayable
    arrive(body, b"e")
    assert not body.replayable


def test_what_is_too_large_to_keep_is_let_go() -> None:
    """Beyond the limit a streamed body takes no memory."""
    body, sink = make_body(limit=4), Sink()
    body.attach(sink)
    for _ in range(100):
        arrive(body, b"xxxx")
    assert body.held == 0
    assert sink.written == b"xxxx" * 100


@pytest.mark.parametrize("chunked", [False, True])
def test_a_second_sink_gets_everything_again(chunked: bool) -> None:
    """Another try starts with the first byte, and goes on with what arrives then."""
    body, first, second = make_body(chunked=chunked), Sink(), Sink()
    body.attach(first)
    arrive(body, b"ab")
    body.detach(first)
    arrive(body, b"cd")
    body.attach(second)
    arrive(body, b"ef", last=True)
    assert (decoded(second.written)[0] if chunked else second.written) == b"abcdef"
    assert (decoded(first.written)[0] if chunked else first.written) == b"ab"


def test_a_second_sink_after_the_body_was_complete() -> None:
    """A complete body is replayed whole, and its end is told again."""
    body, second = make_body(chunked=True), Sink()
    body.attach(Sink())
    arrive(body, b"ab", last=True)
    body.attach(second)
    assert decoded(second.written) == (b"ab", True)
    assert body.sent


def test_a_body_that_outgrows_its_limit_between_two_tries_loses_nothing() -> None:
    """A retry already decided upon still gets every byte, those the first sink took included."""
    body, first, second = make_body(limit=4), Sink(), Sink()
    body.attach(first)
    arrive(body, b"ab")
    body.detach(first)
    arrive(body, b"cd")
    arrive(body, b"ef")
    arrive(body, b"gh")
    assert not body.replayable
    body.attach(second)
    arrive(body, b"ij", last=True)
    assert second.written == b"abcdefghij"


def test_sent_speaks_of_the_present_sink() -> None:
    """What an earlier sink got does not count for the present one."""
    body, first = make_body(), Sink()
    body.attach(first)
    arrive(body, b"ab", last=True)
    assert body.sent
    body.attach(Sink())
    assert body.sent
    streaming = make_body()
    streaming.attach(first)
    arrive(streaming, b"ab")
    assert not streaming.sent


def test_detach_of_a_stranger_changes_nothing() -> None:
    """A sink that has been replaced cannot detach its successor."""
    body, present = make_body(), Sink()
    body.attach(present)
    body.detach(Sink())
    arrive(body, b"ab")
    assert present.written == b"ab"


# ---------------------------------------------------------------- pause and resume


def test_the_app_is_slowed_down_while_nobody_takes_the_body() -> None:
    """Without a sink only so much is held; the first sink lets the app go on."""
    body = make_body(limit=0)
    arrive(body, bytes(HIGH_WATER))
    assert not body.paused
    arrive(body, b"x")
    assert body.paused
    body.attach(Sink())
    assert not body.paused


def test_the_app_is_slowed_down_by_a_slow_target() -> None:
    """While the target's connection is full the app waits, and goes on when it drains."""
    body, sink = make_body(), Sink(write_paused=True)
    body.attach(sink)
    assert body.paused
    sink.write_paused = False
    body.writable()
    assert not body.paused
    arrive(body, b"x")
    assert not body.paused


def test_another_sink_ends_the_pause_of_the_first() -> None:
    """A retry to a quick target does not inherit the wait for the slow one."""
    body, slow = make_body(), Sink(write_paused=True)
    body.attach(slow)
    body.detach(slow)
    assert body.paused
    body.attach(Sink())
    assert not body.paused


def test_a_complete_body_does_not_slow_anything_down() -> None:
    """Once all has arrived there is nothing to pause."""
    body = make_body(limit=0)
    arrive(body, bytes(HIGH_WATER * 2), last=True)
    assert not body.paused


class Upload(RuleBasedStateMachine):
    """A body, an app that respects pauses, and sinks that come, stall, drain and go."""

    @initialize(limit=st.sampled_from([0, 10, 50_000, 200_000]), chunked=st.booleans())
    def begin(self, limit: int, chunked: bool) -> None:
        self._begin(limit, chunked)

    @rule(limit=st.sampled_from([0, 10, 50_000, 200_000]), chunked=st.booleans())
    def next_request(self, limit: int, chunked: bool) -> None:
        self._begin(limit, chunked)

    def _begin(self, limit: int, chunked: bool) -> None:
        self.source = Source()
        self.body = RequestBody(self.source, limit, chunked)
        self.fed = b""
        self.sink: Sink | None = None
        self.may_attach = True
        self.count = 0

    @precondition(lambda self: not self.source.paused and not self.body.complete)
    @rule(sizes=st.lists(st.sampled_from([1, 9, 5_000, 40_000]), max_size=3), last=st.booleans())
    def data(self, sizes: list[int], last: bool) -> None:
        pieces = []
        for size in sizes:
            self.count += 1
            pieces.append(bytes([self.count % 256]) * size)
        self.fed += b"".join(pieces)
        arrive(self.body, *pieces, last=last)

    @precondition(lambda self: self.sink is None and self.may_attach)
    @rule(write_paused=st.booleans())
    def attempt(self, write_paused: bool) -> None:
        self.sink = Sink(write_paused)
        if (whole := self.body.whole()) is not None:
            self.sink.write(whole)
        else:
            self.body.attach(self.sink)

    @precondition(lambda self: self.sink is not None)
    @rule()
    def attempt_fails(self) -> None:
        assert self.sink is not None
        self.body.detach(self.sink)
        self.sink = None
        self.may_attach = self.body.replayable  # this is when a retry is decided upon

    @precondition(lambda self: self.sink is not None)
    @rule()
    def target_stalls(self) -> None:
        assert self.sink is not None
        self.sink.write_paused = True

    @precondition(lambda self: self.sink is not None)
    @rule()
    def target_drains(self) -> None:
        assert self.sink is not None
        self.sink.write_paused = False
        self.body.writable()

    @invariant()
    def the_sink_has_all_that_arrived(self) -> None:
        """Nothing is missing, doubled or out of order, and the end is told with the last byte."""
        if self.sink is None:
            return
        content, ended = decoded(self.sink.written) if self.body.chunked else (self.sink.written, self.body.complete)
        assert content == self.fed
        assert ended == self.body.complete == self.body.sent

    @invariant()
    def a_pause_has_a_reason(self) -> None:
        """The app waits only for a sink: for one to come, or for one to drain."""
        assert self.body.paused == self.source.paused
        if self.sink is not None and not self.sink.write_paused:
            assert not self.source.paused

    @invariant()
    def memory_is_bounded(self) -> None:
        """What is kept respects the limit, and beyond it a body only passes through."""
        if self.body.replayable:
            assert self.body.size <= self.body.limit
        elif self.sink is not None:
            assert self.body.held == 0


TestUpload = Upload.TestCase
TestUpload.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


def test_a_body_in_tiny_pieces_is_kept_in_few() -> None:
    """A piece of one byte takes forty in memory: pieces are joined before they are many."""
    body = RequestBody(Source(), 1 << 16, chunked=False)
    for number in range(10_000):
        body.feed(b"%d" % (number % 10))
    assert len(body.kept) < 100
    assert len(body.pending) < 100
    body.finish()
    assert body.whole() == b"0123456789" * 1000
