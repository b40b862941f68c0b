"""The fallback: covers up faults that are not the app's, and says that it does."""

from __future__ import annotations

import pytest

from outrider.dataplane.policies.fallback import Fallback
from outrider.model.failure import Failure, Kind, Origin
from tests.fakes import make_response


@pytest.mark.parametrize("kind", list(Kind))
def test_faults_of_target_network_and_proxy_are_covered(kind: Kind) -> None:
    """The app's own mistakes are still told to the app."""
    assert Fallback(200).covers(Failure(kind, "")) == (kind.origin is not Origin.CALLER)


@pytest.mark.parametrize(
    ("status", "covered"),
    [(200, False), (302, False), (404, False), (429, False), (500, True), (501, False), (503, True), (505, False)],
)
def test_failed_answers_are_covered(status: int, covered: bool) -> None:
    """What counts as a failure elsewhere counts as one here."""
    assert Fallback(200).covers(make_response(status)) == covered


def test_the_prepared_answer_is_marked() -> None:
    """`x-outrider-degraded` tells the app what it covers up; the rest is as configured."""
    fallback = Fallback(202, [(b"content-type", b"application/json")], b"{}")
    reply = fallback.reply(Failure(Kind.CIRCUIT_OPEN, ""))
    assert (reply.status, reply.body) == (202, b"{}")
    assert reply.headers == [
        (b"content-type", b"application/json"),
        (b"x-outrider-degraded", b"static; cause=circuit-open"),
    ]
    assert fallback.reply(make_response(503)).headers[-1] == (b"x-outrider-degraded", b"static; cause=503")


def test_replies_do_not_add_up() -> None:
    """Each answer carries one mark, also after many."""
    fallback = Fallback(200)
    for _ in range(3):
        reply = fallback.reply(make_response(500))
    assert len(reply.headers) == 1
