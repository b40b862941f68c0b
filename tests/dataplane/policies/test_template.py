"""Templates: header values with variables, filled in as early as possible."""

from __future__ import annotations

import uuid

import pytest

from outrider.dataplane.policies.template import Template
from tests.fakes import make_attempt, make_call

KNOWN = {"service": "booking", "target": "user", "instance": "booking-1"}


def test_what_is_known_at_compile_time_is_constant() -> None:
    """Names of service, target and instance cost nothing per call."""
    template = Template("{service}/{instance} to {target}", KNOWN)
    assert template.constant == b"booking/booking-1 to user"
    assert template.render(make_attempt()) == b"booking/booking-1 to user"


def test_plain_text_stays_as_it_is() -> None:
    """Braces that are no variable are text."""
    for text in ("", "plain", "{}", "{ service }", "{Service}", '{"a": 1}', "100%", "ü"):
        assert Template(text, KNOWN).render(make_attempt()) == text.encode("latin-1")


def test_the_number_of_the_attempt() -> None:
    """`{attempt}` counts from 1."""
    template = Template("try {attempt}", KNOWN)
    assert template.constant is None
    assert [template.render(make_attempt(number=number)) for number in (1, 2)] == [b"try 1", b"try 2"]


def test_the_request_id_is_one_per_call() -> None:
    """The same on every attempt of a call, another on another call, and a UUID."""
    template = Template("{request_id}", KNOWN)
    call = make_call()
    first = template.render(make_attempt(call, number=1))
    assert template.render(make_attempt(call, number=2)) == first
    assert template.render(make_attempt(make_call())) != first
    assert uuid.UUID(first.decode()).version == 4


def test_two_templates_see_the_same_request_id() -> None:
    """Two headers that name the request name the same one."""
    attempt = make_attempt()
    assert Template("{request_id}", {}).render(attempt) == Template("{request_id}", KNOWN).render(attempt)


def test_the_correlation_id() -> None:
    """`{correlation_id}` is the id the call travels under."""
    call = make_call()
    call.correlation_id = b"c-1"
    assert Template("<{correlation_id}>", KNOWN).render(make_attempt(call)) == b"<c-1>"


@pytest.mark.parametrize(("headers", "value"), [({b"x-user-id": b"7"}, b"u7-booking"), ({}, b"u-booking")])
def test_a_header_of_the_request(headers: dict[bytes, bytes], value: bytes) -> None:
    """`{header:NAME}` in any case; a header that is not there is nothing."""
    template = Template("u{header:X-User-Id}-{service}", KNOWN)
    assert template.render(make_attempt(make_call(headers=headers))) == value


def test_values_are_not_read_as_templates() -> None:
    """What the app sends is data, braces or not."""
    call = make_call(headers={b"x-user-id": b"{attempt}{service}"})
    assert Template("{header:x-user-id}", KNOWN).render(make_attempt(call)) == b"{attempt}{service}"
