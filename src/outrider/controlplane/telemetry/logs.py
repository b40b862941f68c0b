"""JSON logs: one line per event, and one per call that was retried, refused or failed.

Lines are written by a thread of their own, through a bounded queue: a log that nobody reads must never stop calls.
"""

from __future__ import annotations

import json
import logging
import queue
import sys
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from random import random
from typing import TYPE_CHECKING, Any

from outrider.model.addresses import hide_in_urls
from outrider.model.outcome import FAILURE, classify

if TYPE_CHECKING:
    from outrider.dataplane.call import Call

_MAX_QUEUED = 10_000


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


class _DroppingHandler(QueueHandler):
    """Hands lines to the writing thread; drops and counts what does not fit."""

    def __init__(self, lines: queue.Queue[Any]) -> None:
        super().__init__(lines)
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1


def log_directly(level: str) -> None:
    """Logging without a thread, for a process that forks and has next to nothing to say."""
    writer = logging.StreamHandler(sys.stderr)
    writer.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [writer]
    logging.getLogger("outrider").setLevel(level.upper())


class Logs:
    """Sets up logging for a process; `close` writes what is still queued."""

    def __init__(self, level: str, worker: int | None = None) -> None:
        lines: queue.Queue[Any] = queue.Queue(_MAX_QUEUED)
        self._handler = _DroppingHandler(lines)
        writer = logging.StreamHandler(sys.stderr)
        writer.setFormatter(JsonFormatter(worker))
        self._listener = QueueListener(lines, writer)
        root = logging.getLogger()
        root.handlers[:] = [self._handler]
        root.setLevel(logging.WARNING)
        logging.getLogger("outrider").setLevel(level.upper())
        self._listener.start()

    @property
    def dropped(self) -> int:
        return self._handler.dropped

    def close(self) -> None:
        self._listener.stop()


class AccessLog:
    """One line per call worth it. `access` is none, errors, all, or errors and a share of the rest like `1%`."""

    def __init__(self, service: str, access: str, *, query: bool, logs: Logs | None = None) -> None:
        self._log = logging.getLogger("outrider.access")
        self._service = service
        self._query = query
        self._logs = logs
        self._off = access == "none"
        self._share = 1.0 if access == "all" else float(access[:-1]) / 100 if access.endswith("%") else 0.0

    @property
    def wants_all(self) -> bool:
        """Whether calls without incident must be reported, too."""
        return self._share > 0

    @property
    def dropped(self) -> int:
        """Lines that nobody took in time."""
        return self._logs.dropped if self._logs is not None else 0

    def __call__(self, call: Call, seconds: float) -> None:
        notable = call.history is not None or call.failure is not None or call.label != "ok"
        if self._off or not (notable or random() < self._share):
            return
        self._log.log(_level(call), "call", extra={"fields": self._fields(call, seconds)})

    def _fields(self, call: Call, seconds: float) -> dict[str, object]:
        path = call.path or call.target
        attempt = call.attempt
        endpoint = attempt.endpoint.name if attempt is not None and attempt.endpoint is not None else None
        trace = call.traceparent.split(b"-") if call.traceparent else []
        fields: dict[str, object] = {
            "direction": "inbound" if call.route.inbound else None,
            "caller": (call.caller or None) if call.route.inbound else self._service,
            "service": call.route.cluster.shown or None,
            "route": call.route.name or None,
            "method": call.method.decode("latin-1"),
            "path": (path if self._query else path.partition(b"?")[0]).decode("latin-1"),
            "status": call.status,
            "outcome": call.label,
            "flags": call.failure.kind.flag if call.failure is not None else _flag(call),
            "attempts": call.attempts,
            "why": call.history or ([call.failure.detail] if call.failure is not None else None),
            "duration_ms": round(seconds * 1000, 1),
            "overhead_ms": round(max(0.0, call.overhead(seconds)) * 1000, 1),
            "endpoint": endpoint,
            "bytes_in": call.body.size if call.body is not None else 0,
            "correlation_id": call.correlation_id.decode("latin-1") or None,
            "trace_id": trace[1].decode() if len(trace) > 2 else None,
            "span_id": trace[2].decode() if len(trace) > 2 else None,
        }
        return {name: value for name, value in fields.items() if value is not None}


def _level(call: Call) -> int:
    return logging.WARNING if call.label not in ("ok", "cancelled") else logging.INFO


def _flag(call: Call) -> str:
    """Envoy's flag for tries used up, which leaves no failure of our own behind."""
    return "URX" if call.attempts > 1 and classify(call.status) is FAILURE else "-"
