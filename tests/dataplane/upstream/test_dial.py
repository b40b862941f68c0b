"""Why a connection could not be made: what it says about the target, and what only about this machine."""

from __future__ import annotations

import errno

import pytest

from outrider.dataplane.runtime.names import UnresolvedError
from outrider.dataplane.upstream.dial import failure_of
from outrider.model.failure import LOCAL_ERRORS, Kind
from outrider.model.outcome import FAILURE, NEUTRAL
from tests.fakes import make_cluster


def kind(error: Exception, tls: bool = False) -> Kind:
    failure = failure_of(error, make_cluster().endpoints[0], tls, 1.0)
    assert failure.endpoint == "127.0.0.1:3001"
    assert "127.0.0.1:3001" in failure.detail
    return failure.kind


@pytest.mark.parametrize("code", sorted(LOCAL_ERRORS), ids=errno.errorcode.__getitem__)
def test_this_machine_is_short_of_something(code: int) -> None:
    """No local port, descriptor, memory or network: a fault of ours, neutral to the target and safe to try again."""
    assert kind(OSError(code, "short")) is Kind.LOCAL_FAULT
    assert kind(UnresolvedError("short", local=True)) is Kind.LOCAL_FAULT
    assert (Kind.LOCAL_FAULT.outcome, Kind.LOCAL_FAULT.status) == (NEUTRAL, 503)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), Kind.CONNECT_REFUSED),
        (OSError(errno.EHOSTUNREACH, "no route"), Kind.UNREACHABLE),
        (OSError(errno.ENETUNREACH, "no route"), Kind.UNREACHABLE),
        (ConnectionResetError(errno.ECONNRESET, "reset"), Kind.UNREACHABLE),
        (TimeoutError(), Kind.CONNECT_TIMEOUT),
        (TimeoutError(errno.ETIMEDOUT, "the kernel's own time limit"), Kind.CONNECT_TIMEOUT),
        (UnresolvedError("no such name"), Kind.DNS),
    ],
    ids=str,
)
def test_the_target_cannot_be_reached(error: Exception, expected: Kind) -> None:
    """Anything else counts against the target."""
    assert kind(error) is expected
    assert expected.outcome is FAILURE


def test_tls() -> None:
    """With TLS, a connection that breaks off is a handshake that has failed."""
    assert kind(ConnectionResetError(errno.ECONNRESET, "reset"), tls=True) is Kind.TLS_FAILED
