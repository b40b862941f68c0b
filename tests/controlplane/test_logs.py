"""The log: bounded, never in the way, and readable when much of the same happens."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

from outrider.controlplane.telemetry import logs as logs_module
from outrider.controlplane.telemetry.logs import AccessLog, Logs, Repetitions, Writer, log_directly
from outrider.model.failure import Failure, Kind
from tests.fakes import Clock, make_call, make_cluster, make_route


class Pipe:
    """A pipe in place of standard error. `full`: it takes nothing until it is read."""

    def __init__(self, *, full: bool) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.filled = 0
        if full:
            os.set_blocking(self.writing, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    self.filled += os.write(self.writing, b"x" * 4096)
            os.set_blocking(self.writing, True)
        self.text = b""

    def read(self) -> list[dict[str, Any]]:
        """The lines so far."""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.reading, 65536):
                self.text += piece
        return [json.loads(line) for line in self.text[self.filled :].splitlines()]


@pytest.fixture(name="make_pipe")
def fixture_make_pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    root, own = logging.getLogger(), logging.getLogger("outrider")
    before = root.handlers[:], root.level, own.level
    made: list[Pipe] = []

    def make(*, full: bool = False) -> Pipe:
        pipe = Pipe(full=full)
        made.append(pipe)
        monkeypatch.setattr(logs_module, "_log_descriptor", lambda: os.dup(pipe.writing))
        return pipe

    yield make
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    own.setLevel(before[2])
    for pipe in made:
        os.close(pipe.writing)
        with contextlib.suppress(OSError):
            os.close(pipe.reading)


def test_lines_are_written_in_order(make_pipe: Any) -> None:
    """What is logged stands in the log when the process ends, one JSON object per line."""
    pipe = make_pipe()
    logs = Logs("info")
    for number in range(5):
        logging.getLogger("outrider").info("line %d", number, extra={"fields": {"a": "é\n"}})
    logs.close()
    lines = pipe.read()
    assert [line["msg"] for line in lines] == [f"line {number}" for number in range(5)]
    assert {line["a"] for line in lines} == {"é\n"}


def test_a_log_that_nothing_reads_holds_up_nothing(make_pipe: Any) -> None:
    """With a full pipe, logging costs next to nothing, what does not fit is counted, and the end waits a second."""
    pipe = make_pipe(full=True)
    logs = Logs("info", repeats=sys.maxsize)
    log = logging.getLogger("outrider")
    began = monotonic()
    for _ in range(3000):
        log.info("much", extra={"fields": {"path": "x" * 4000}})
    took = monotonic() - began
    began = monotonic()
    logs.close()
    ended = monotonic() - began
    assert took < 2.0
    assert ended < 2.5
    assert logs.dropped > 1500
    assert logs._queue._bytes <= 5 << 20
    assert pipe.read() == []


def test_what_was_dropped_is_told_when_the_log_is_read_again(make_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log itself says how many lines are missing."""
    monkeypatch.setattr(logs_module, "_MAX_QUEUED", 20_000)
    pipe = make_pipe(full=True)
    logs = Logs("info", repeats=sys.maxsize)
    for _ in range(100):
        logging.getLogger("outrider").info("much")
    dropped = logs.dropped
    pipe.read()
    logs.close()
    lines = pipe.read()
    assert dropped > 50
    assert [line["lines"] for line in lines if line["msg"] == "log lines were dropped"] == [dropped]
    assert sum(line["msg"] == "much" for line in lines) == 100 - dropped


def test_a_log_whose_reader_has_gone_is_given_up(make_pipe: Any) -> None:
    """Lines are dropped and counted, and nothing is raised."""
    pipe = make_pipe()
    os.close(pipe.reading)
    logs = Logs("info")
    for _ in range(3):
        logging.getLogger("outrider").info("anybody?")
    logs.close()
    assert logs.dropped == 3


def test_without_standard_error_lines_are_dropped() -> None:
    """A process whose standard error is closed logs nothing, and goes on."""
    writer = Writer(None)
    assert (writer.write(b"line\n", 0), writer.broken) == (0, True)


def test_the_supervisor_never_waits_for_its_log(make_pipe: Any) -> None:
    """It writes what is taken at once, and tells later what was missing."""
    pipe = make_pipe(full=True)
    log_directly("info")
    began = monotonic()
    for _ in range(5):
        logging.getLogger("outrider").info("a worker died")
    assert monotonic() - began < 0.5
    pipe.read()
    logging.getLogger("outrider").info("and again")
    lines = pipe.read()
    assert [line["msg"] for line in lines] == ["and again", "log lines were dropped"]
    assert lines[1]["lines"] == 5


# ---------------------------------------------------------------- what repeats itself


def test_the_first_of_a_kind_are_written_and_the_others_counted() -> None:
    """Within ten seconds ten are written in full; then one line says how many more there were."""
    clock = Clock()
    repetitions = Repetitions(3, 10.0, clock)
    assert [repetitions.admit("a", {"like": "a"}) for _ in range(5)] == [True] * 3 + [False] * 2
    assert repetitions.admit("b", {})
    assert repetitions.over() == []
    clock.advance(10.0)
    assert repetitions.over() == [{"like": "a", "repeated": 2, "seconds": 10.0}]
    assert repetitions.over() == []
    assert repetitions.admit("a", {"like": "a"})


def test_nothing_is_told_of_what_did_not_repeat_itself() -> None:
    """A kind that stayed below the limit leaves no line behind, and begins anew later."""
    clock = Clock()
    repetitions = Repetitions(3, 10.0, clock)
    for _ in range(4):
        assert all(repetitions.admit("a", {}) for _ in range(3))
        clock.advance(10.0)
    assert repetitions.over(all_of_them=True) == []


def test_kinds_are_bounded() -> None:
    """However many kinds there are, few are remembered; the others are written."""
    repetitions = Repetitions(1, 10.0, Clock())
    for number in range(1500):
        repetitions.admit(number, {})
        repetitions.admit(number, {})
    assert len(repetitions._kinds) <= 1000
    assert repetitions.admit("one more", {})


def failed(service: str, kind: Kind, path: bytes = b"/x") -> Any:
    call = make_call(route=make_route(make_cluster(service)))
    call.path = path
    call.failure = Failure(kind, "as it is")
    call.label, call.status = kind.label, kind.status
    return call


def test_calls_that_fail_alike_are_folded(make_pipe: Any) -> None:
    """500 calls to a port that refuses are a dozen lines, not 500; other failures stay visible among them."""
    pipe = make_pipe()
    logs = Logs("info")
    access = AccessLog("booking", "errors", query=False, logs=logs)
    for number in range(500):
        access(failed("user", Kind.CONNECT_REFUSED), 0.001)
        if number % 100 == 0:
            access(failed("payment", Kind.CONNECT_REFUSED), 0.001)
            access(failed("user", Kind.DNS), 0.001)
    logs.close()
    lines = pipe.read()
    assert len(lines) == 10 + 5 + 5 + 1
    summary = lines[-1]
    assert (summary["msg"], summary["like"], summary["service"], summary["repeated"]) == (
        "the same again",
        "call",
        "user",
        490,
    )
    assert summary["reason"] == "connect-failed"
    assert len(pipe.text) < 12_000


def test_all_calls_are_logged_where_that_is_asked_for(make_pipe: Any) -> None:
    """With `access: all` nothing is folded."""
    pipe = make_pipe()
    logs = Logs("info")
    access = AccessLog("booking", "all", query=False, logs=logs)
    for _ in range(50):
        access(failed("user", Kind.CONNECT_REFUSED), 0.001)
    logs.close()
    assert len(pipe.read()) == 50


def test_other_lines_are_folded_by_their_text(make_pipe: Any) -> None:
    """A circuit that opens and closes a hundred times a minute does not fill the log either."""
    pipe = make_pipe()
    logs = Logs("info")
    for number in range(100):
        logging.getLogger("outrider").warning("circuit %s: %s", "user", "open" if number % 2 else "closed")
    logs.close()
    lines = pipe.read()
    assert len(lines) == 11
    assert (lines[-1]["like"], lines[-1]["repeated"]) == ("circuit user: open", 90)


# ---------------------------------------------------------------- what comes from outside


def test_what_comes_from_outside_is_cut(make_pipe: Any) -> None:
    """Path, method, ids, names and sentences are logged up to a length each, whatever was sent."""
    pipe = make_pipe()
    logs = Logs("info")
    access = AccessLog("booking", "errors", query=True, logs=logs)
    call = failed("user", Kind.BAD_REQUEST, b"/" + b"\xff" * 60_000)
    call.method = b"M" * 60_000
    call.correlation_id = b"\xff" * 60_000
    call.caller = "c" * 60_000
    call.traceparent = b"00-" + b"\xff" * 60_000 + b"-1-2"
    call.route.inbound = True
    call.history = ["w" * 60_000] * 1000
    access(call, 0.001)
    logs.close()
    (line,) = pipe.read()
    assert line["path"].endswith("... (60001 characters)")
    assert len(line["why"]) == 40
    assert len(pipe.text) < 40_000


@pytest.mark.parametrize("query", [False, True])
@pytest.mark.parametrize(
    "target",
    [
        b"http://user:hunter2@payment/x?a=b",
        b"http://user:hun?ter2/hunter2@payment/x",
        b"user:hunter2@payment:443",
        b"/x#access_token=hunter2",
        b"http://payment/x#access_token=hunter2",
    ],
)
def test_no_secret_of_a_refused_target_is_logged(make_pipe: Any, target: bytes, query: bool) -> None:
    """User information and fragments have no place in a request, so it is refused; the log says so without them."""
    pipe = make_pipe()
    logs = Logs("info")
    access = AccessLog("booking", "errors", query=query, logs=logs)
    call = failed("user", Kind.BAD_REQUEST, b"")
    call.target = target
    access(call, 0.001)
    logs.close()
    (line,) = pipe.read()
    assert b"ter2" not in pipe.text
    assert line["path"]
