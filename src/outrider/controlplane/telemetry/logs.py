"""JSON logs: one line per event, and one per call that was retried, refused or failed.

Lines are written by a thread of their own, through a queue that is bounded in bytes: a log that nothing reads must
never stop calls, grow without end or hold up the end of the process. What repeats itself is folded into one line with a
count, and what comes from outside is cut.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable, Hashable
from datetime import UTC, datetime
from random import random
from time import monotonic
from typing import TYPE_CHECKING, Any

from outrider.model.addresses import HIDDEN, hide_in_urls
from outrider.model.outcome import FAILURE, classify

if TYPE_CHECKING:
    from outrider.dataplane.call import Call

# Bytes of lines that may wait to be written, about.
_MAX_QUEUED = 4 << 20
# Bytes a record costs beside its texts, about.
_RECORD = 600
# Bytes that one write to a pipe takes whole, and without waiting when the pipe has told that it can take some
# (POSIX: at least 512; Linux: 4096).
_PIECE = select.PIPE_BUF
# Seconds between looks whether a repetition has to be told, or the end has come.
_LOOK = 0.5
# Seconds that the end of the process waits for lines to be written.
_PATIENCE = 1.0
# Lines of one kind that are written in full within so many seconds; the others are counted.
MOST_ALIKE = 10
INTERVAL = 10.0
# Kinds of lines that are told apart at a time.
_MOST_KINDS = 1000
# Characters of a text from outside (a path, an id, a name), and of a sentence, that are logged; and sentences per call.
_LONGEST_TEXT = 256
_LONGEST_SENTENCE = 400
_MOST_SENTENCES = 40
_AGAIN = "the same again"
_DROPPED = "log lines were dropped"


class JsonFormatter(logging.Formatter):
    """`ts`, `level`, `msg`, `worker` if there are several, then whatever the record carries as `fields`. Secrets of
    URLs are hidden in messages and exceptions, also in those of libraries."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": {"WARNING": "warn"}.get(record.levelname, record.levelname.lower()),
            "msg": hide_in_urls(record.getMessage()),
        }
        if self._worker is not None:
            line["worker"] = self._worker
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = hide_in_urls(self.formatException(record.exc_info))
        return json.dumps(line, default=str)


class Repetitions:
    """Counts lines of one kind: the first ones within an interval are to be written, the others are only counted until
    the interval is over. May be used by several threads."""

    def __init__(
        self, most: int = MOST_ALIKE, interval: float = INTERVAL, clock: Callable[[], float] = monotonic
    ) -> None:
        self._most = most
        self._interval = interval
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds: dict[Hashable, _Kind] = {}

    def admit(self, kind: Hashable, summary: dict[str, object]) -> bool:
        """Whether a line of this kind is to be written. If not, `summary` is what a line that counts them will say."""
        now = self._clock()
        with self._lock:
            known = self._kinds.get(kind)
            if known is None or (now - known.since >= self._interval and not known.left_out):
                if known is not None or len(self._kinds) < _MOST_KINDS or self._forget():
                    self._kinds[kind] = _Kind(now)
                return True
            known.written += 1
            if known.written <= self._most:
                return True
            known.left_out += 1
            known.summary = summary
            return False

    def over(self, *, all_of_them: bool = False) -> list[dict[str, object]]:
        """What is to be told of the intervals that have ended: how many lines were left out, in how many seconds."""
        told = []
        now = self._clock()
        with self._lock:
            for kind, known in list(self._kinds.items()):
                if all_of_them or now - known.since >= self._interval:
                    del self._kinds[kind]
                    if known.left_out:
                        seconds = round(now - known.since, 1)
                        told.append({**known.summary, "repeated": known.left_out, "seconds": seconds})
        return told

    def _forget(self) -> bool:
        """Forget the kinds that have nothing to tell; whether that has made room."""
        self._kinds = {kind: known for kind, known in self._kinds.items() if known.left_out}
        return len(self._kinds) < _MOST_KINDS


class _Kind:
    """Lines of one kind since the interval began."""

    __slots__ = ("left_out", "since", "summary", "written")

    def __init__(self, since: float) -> None:
        self.since = since
        self.written = 1
        self.left_out = 0
        self.summary: dict[str, object] = {}


class Writer:
    """Writes lines to a descriptor, as far as it takes them without waiting. `dropped` counts those it has not."""

    def __init__(self, descriptor: int | None) -> None:
        """None: there is no log, and every line is dropped."""
        self._descriptor = descriptor
        self._poll = select.poll()
        if descriptor is not None:
            self._poll.register(descriptor, select.POLLOUT)
        self.dropped = 0

    def write(self, lines: bytes, seconds: float) -> int:
        """Write these lines, waiting up to so many seconds each time until some can be taken; returns the number of
        bytes written."""
        written = 0
        while written < len(lines) and self._descriptor is not None:
            try:
                ready = self._poll.poll(seconds * 1000)
                if not ready:
                    break
                written += os.write(self._descriptor, lines[written : written + _PIECE])
            except OSError:  # nothing reads any more, and nothing will
                self._descriptor = None
        return written

    @property
    def broken(self) -> bool:
        """Whether nothing can be written any more."""
        return self._descriptor is None


class _Queue(logging.Handler):
    """Hands records to the writing thread; drops and counts what does not fit, folds what repeats itself."""

    def __init__(self, repetitions: Repetitions) -> None:
        super().__init__()
        self._records: deque[tuple[logging.LogRecord, int]] = deque()
        self._bytes = 0
        self._news = threading.Condition()
        self._repetitions = repetitions
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        # Lines of calls have been folded already, before their fields were put together.
        if not hasattr(record, "folded"):
            kind = (record.name, record.levelno, record.msg)
            if not self._repetitions.admit(kind, {"like": _cut(record.getMessage(), _LONGEST_SENTENCE)}):
                return
        size = _size(record)
        with self._news:
            if self._bytes + size > _MAX_QUEUED:
                self.dropped += 1
                return
            self._bytes += size
            self._records.append((record, size))
            self._news.notify()

    def take(self, seconds: float) -> list[logging.LogRecord]:
        """What waits, after up to so many seconds if that is nothing."""
        with self._news:
            if not self._records:
                self._news.wait(seconds)
            taken = [record for record, _ in self._records]
            self._records.clear()
            return taken

    def written(self, records: list[logging.LogRecord]) -> None:
        """These need no room any more."""
        with self._news:
            self._bytes = sum(size for _, size in self._records)

    def wake(self) -> None:
        """End a wait."""
        with self._news:
            self._news.notify()


class Logs:
    """Sets up logging for a process; `close` writes what is still queued, if that is taken in time."""

    def __init__(self, level: str, worker: int | None = None, repeats: int = MOST_ALIKE) -> None:
        """`repeats` is how many lines of one kind are written in full within an interval."""
        self.repetitions = Repetitions(repeats)
        self._formatter = JsonFormatter(worker)
        self._queue = _Queue(self.repetitions)
        self._writer = Writer(_log_descriptor())
        self._closing = False
        self._told = 0  # of the lines dropped
        root = logging.getLogger()
        root.handlers[:] = [self._queue]
        root.setLevel(logging.WARNING)
        logging.getLogger("outrider").setLevel(level.upper())
        # A daemon: one that is stuck in a write must not keep the process from ending.
        self._thread = threading.Thread(target=self._write_all, name="outrider-log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that were not written."""
        return self._queue.dropped + self._writer.dropped

    def close(self) -> None:
        """Write what waits, for at most a second."""
        self._closing = True
        self._queue.wake()
        self._thread.join(_PATIENCE)

    def _write_all(self) -> None:
        while not self._closing:
            self._write(self._queue.take(_LOOK))
        self._write(self._queue.take(0))

    def _write(self, records: list[logging.LogRecord]) -> None:
        records += [_record(_AGAIN, fields) for fields in self.repetitions.over(all_of_them=self._closing)]
        dropped = self.dropped
        if dropped > self._told and not self._writer.broken:
            records.append(_record(_DROPPED, {"lines": dropped - self._told}))
            self._told = dropped
        batch = b""
        for index, record in enumerate(records):
            batch += self._line(record)
            if len(batch) >= _PIECE or index == len(records) - 1:
                self._put(batch)
                batch = b""
        self._queue.written(records)

    def _line(self, record: logging.LogRecord) -> bytes:
        try:
            return self._formatter.format(record).encode(errors="replace") + b"\n"
        except Exception as error:  # a line that cannot be written must not end the log
            return f'{{"level": "error", "msg": "a log line cannot be written: {type(error).__name__}"}}\n'.encode()

    def _put(self, lines: bytes) -> None:
        """Until it is taken; at the end, as far as it is taken at once."""
        written = 0
        while written < len(lines):
            if self._writer.broken:
                self._writer.dropped += lines[written:].count(b"\n")
                return
            more = self._writer.write(lines[written:], _LOOK if not self._closing else _PATIENCE / 10)
            written += more
            if not more and self._closing:
                self._writer.dropped += lines[written:].count(b"\n")
                return


class DirectLog(logging.Handler):
    """Writes at once, and drops what is not taken at once. `dropped` counts those lines."""

    def __init__(self) -> None:
        super().__init__()
        self._writer = Writer(_log_descriptor())
        self.dropped = self._told = 0
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # the log must not end what it tells of
            line = self.format(record).encode(errors="replace") + b"\n"
            if not self._writer.write(line, 0):
                self.dropped += 1
            elif self.dropped > self._told:
                fields: dict[str, object] = {"lines": self.dropped - self._told}
                self._told = self.dropped
                self._writer.write(self.format(_record(_DROPPED, fields)).encode() + b"\n", 0)


def say_directly(text: str) -> None:
    """Write to standard error from a process that ends, for at most about a second, whether or not it is read."""
    Writer(_log_descriptor()).write(text.encode(errors="replace"), _PATIENCE)


def log_directly(level: str) -> DirectLog:
    """Logging without a thread, for a process that forks and has next to nothing to say. It never waits."""
    direct = DirectLog()
    root = logging.getLogger()
    root.handlers[:] = [direct]
    logging.getLogger("outrider").setLevel(level.upper())
    return direct


def _log_descriptor() -> int | None:
    """A descriptor of our own for standard error, so that nothing else can come to stand under its number; None if
    there is none."""
    try:
        return os.dup(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, replaced by something without a descriptor, or missing
        return None


def _record(message: str, fields: dict[str, object]) -> logging.LogRecord:
    record = logging.LogRecord("outrider", logging.WARNING, "", 0, message, None, None)
    record.fields = fields
    return record


def _size(record: logging.LogRecord) -> int:
    """Bytes that a record takes while it waits, about."""
    size = _RECORD + len(str(record.msg))
    for value in getattr(record, "fields", {}).values():
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, list):
            size += sum(len(one) for one in value if isinstance(one, str))
    if record.args:
        size += sum(len(one) for one in record.args if isinstance(one, str))
    return size + (4000 if record.exc_info else 0)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text)} characters)"


class AccessLog:
    """One line per call worth it. `access` is none, errors, all, or errors and a share of the rest like `1%`."""

    def __init__(
        self, service: str, access: str, *, query: bool, repeats: int = MOST_ALIKE, logs: Logs | None = None
    ) -> None:
        self._log = logging.getLogger("outrider.access")
        self._service = service
        self._query = query
        self._logs = logs
        self._repetitions = logs.repetitions if logs is not None else Repetitions(repeats)
        self._off = access == "none"
        self._all = access == "all"
        self._share = 1.0 if access == "all" else float(access[:-1]) / 100 if access.endswith("%") else 0.0

    @property
    def wants_all(self) -> bool:
        """Whether calls without incident must be reported, too."""
        return self._share > 0

    @property
    def dropped(self) -> int:
        """Lines that were not taken in time."""
        return self._logs.dropped if self._logs is not None else 0

    def __call__(self, call: Call, seconds: float) -> None:
        if self._off:
            return
        notable = call.history is not None or call.failure is not None or call.label != "ok"
        if notable and not self._all:
            if self._logs is None:  # which would tell of repetitions
                for told in self._repetitions.over():
                    self._log.warning(_AGAIN, extra={"fields": told})
            if not self._is_news(call):
                return
        elif random() >= self._share:
            return
        self._log.log(_level(call), "call", extra={"fields": self._fields(call, seconds), "folded": True})

    def _is_news(self, call: Call) -> bool:
        """Whether this line says more than the latest ones did: not if many calls of one service end alike."""
        failure = call.failure
        service = call.route.shown
        reason = failure.kind.slug if failure is not None else call.label
        kind = (service, call.route.inbound, reason, call.status)
        summary: dict[str, object] = {
            "like": "call",
            "direction": "inbound" if call.route.inbound else "outbound",
            "service": service or None,
            "outcome": call.label,
            "reason": reason,
            "status": call.status,
        }
        return self._repetitions.admit(kind, summary)

    def _fields(self, call: Call, seconds: float) -> dict[str, object]:
        path = call.path or call.target
        attempt = call.attempt
        endpoint = attempt.endpoint.name if attempt is not None and attempt.endpoint is not None else None
        trace = call.traceparent.split(b"-") if call.traceparent else []
        why = call.history or ([call.failure.detail] if call.failure is not None else None)
        fields: dict[str, object] = {
            "direction": "inbound" if call.route.inbound else None,
            "caller": (_cut(call.caller, _LONGEST_TEXT) or None) if call.route.inbound else self._service,
            "service": call.route.shown or None,
            "route": call.route.name or None,
            "method": _text(call.method),
            "path": _target(path, self._query),
            "status": call.status,
            "outcome": call.label,
            "flags": call.failure.kind.flag if call.failure is not None else _flag(call),
            "attempts": call.attempts,
            "why": [_cut(one, _LONGEST_SENTENCE) for one in why[:_MOST_SENTENCES]] if why is not None else None,
            "duration_ms": round(seconds * 1000, 1),
            "overhead_ms": round(max(0.0, call.overhead(seconds)) * 1000, 1),
            "endpoint": endpoint,
            "bytes_in": call.body.size if call.body is not None else 0,
            "correlation_id": _text(call.correlation_id) or None,
            "trace_id": _text(trace[1]) if len(trace) > 2 else None,
            "span_id": _text(trace[2]) if len(trace) > 2 else None,
        }
        return {name: value for name, value in fields.items() if value is not None}


def _target(target: bytes, query: bool) -> str:
    """A path, or the whole target of a request that could not be taken for one: that may be a URL with a password in
    it, or have a token behind `#`, and is refused, but logged."""
    if target[:1] != b"/":
        url = target.decode("latin-1")
        if "://" in url:
            return _cut(hide_in_urls(url), _LONGEST_TEXT)
        target = (f"{HIDDEN}@{url.rpartition('@')[2]}" if "@" in url else url).encode("latin-1")
    target = target.partition(b"#")[0]
    return _text(target if query else target.partition(b"?")[0])


def _text(value: bytes) -> str:
    """What has come from outside, in a length that can be logged."""
    return _cut(value.decode("latin-1"), _LONGEST_TEXT)


def _level(call: Call) -> int:
    return logging.WARNING if call.label not in ("ok", "cancelled") else logging.INFO


def _flag(call: Call) -> str:
    """Envoy's flag for tries used up, which leaves no failure of our own behind."""
    return "URX" if call.attempts > 1 and classify(call.status) is FAILURE else "-"
