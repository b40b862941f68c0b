"""The fallback: covers up faults that are not the app's with the first answer of a chain, and says that it does."""

from __future__ import annotations

from typing import Any, cast

import pytest

from outrider.dataplane.engine.routing import Fallback
from outrider.dataplane.policies.fallback import FallbackReplies, Prepared, cause
from outrider.dataplane.policies.last_good import LastGood
from outrider.model.failure import Failure, Kind, Origin
from tests.fakes import make_call, make_response

PREPARED = FallbackReplies([Prepared(200)])
BROKEN = Failure(Kind.CIRCUIT_OPEN, "")


@pytest.mark.parametrize("kind", list(Kind))
def test_faults_of_target_network_and_proxy_are_covered(kind: Kind) -> None:
    """The app's own mistakes are still told to the app."""
    assert PREPARED.covers(Failure(kind, "")) == (kind.origin is not Origin.CALLER)


@pytest.mark.parametrize(
    ("status", "covered"),
    [(200, False), (302, False), (404, False), (429, False), (500, True), (501, False), (503, True), (505, False)],
)
def test_failed_answers_are_covered(status: int, covered: bool) -> None:
    """What counts as a failure elsewhere counts as one here."""
    assert PREPARED.covers(make_response(status)) == covered


def test_the_prepared_answer_is_marked() -> None:
    """`x-outrider-degraded` tells the app what it covers up; the rest is as configured."""
    fallback = FallbackReplies([Prepared(202, [(b"content-type", b"application/json")], b"{}")])
    reply = fallback.reply(make_call(), BROKEN)
    assert reply is not None
    assert (reply.status, reply.body) == (202, b"{}")
    assert reply.headers == [
        (b"content-type", b"application/json"),
        (b"x-outrider-degraded", b"static; cause=circuit-open"),
    ]
    other = fallback.reply(make_call(), make_response(503))
    assert other is not None
    assert other.headers[-1] == (b"x-outrider-degraded", b"static; cause=503")


def test_replies_do_not_add_up() -> None:
    """Each answer carries one mark, also after many."""
    for _ in range(3):
        reply = PREPARED.reply(make_call(), make_response(500))
        assert reply is not None
        assert len(reply.headers) == 1


def test_an_empty_chain_has_nothing() -> None:
    """Where only another service could have helped, the failure remains."""
    assert FallbackReplies([]).reply(make_call(), BROKEN) is None


def kept_good() -> LastGood:
    """Earlier answers, one of them to `GET /`."""
    last_good = LastGood(60.0, 10_000, 10_000)
    call, response = make_call(), make_response(200)
    response.chunked = True
    recorder = last_good.recorder(call, response)
    assert recorder is not None
    recorder.add([b"earlier"])
    last_good.keep(call, response, recorder)
    return last_good


def test_the_first_that_has_an_answer_wins() -> None:
    """An earlier good answer before a prepared one, where there is one."""
    reply = FallbackReplies([kept_good(), Prepared(202)]).reply(make_call(), BROKEN)
    assert reply is not None
    assert (reply.status, reply.body) == (200, b"earlier")


def test_what_has_no_answer_is_passed_over() -> None:
    """Without an earlier answer to this very call the prepared one comes."""
    chain = FallbackReplies([kept_good(), Prepared(202)])
    for call in (make_call(b"POST"), make_call(headers={b"accept": b"text/html"})):
        reply = chain.reply(call, BROKEN)
        assert reply is not None
        assert reply.status == 202


def test_the_order_is_the_configured_one() -> None:
    """What stands behind a prepared answer is never asked."""
    reply = FallbackReplies([Prepared(202), kept_good()]).reply(make_call(), BROKEN)
    assert reply is not None
    assert reply.status == 202


def test_only_a_chain_with_last_good_takes_answers_down() -> None:
    """`last_good` says where answers are to be kept, and is None where nobody asked for it."""
    last_good = kept_good()
    assert FallbackReplies([Prepared(202), last_good]).last_good is last_good
    assert PREPARED.last_good is None


def test_services_that_stand_in_keep_their_order() -> None:
    """They are asked one after the other, as written."""
    services = cast(Any, ["first", "second"])
    assert Fallback([], services).services == ("first", "second")


def test_the_cause_is_one_word() -> None:
    """The slug of a failure, or the status of an answer."""
    assert cause(Failure(Kind.ATTEMPT_TIMEOUT, "no answer within 5 s")) == "timeout"
    assert cause(make_response(503)) == "503"
