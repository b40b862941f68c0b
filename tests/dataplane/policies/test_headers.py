"""Headers that are set or removed: each once, in place of the app's, and never empty."""

from __future__ import annotations

from outrider.dataplane.policies.headers import Headers
from outrider.dataplane.policies.template import Template
from tests.fakes import make_attempt, make_call


def make_headers(set_: dict[str, str], remove: tuple[str, ...] = ()) -> Headers:
    return Headers({name: Template(text, {"service": "booking"}) for name, text in set_.items()}, remove)


def lines(headers: Headers, number: int = 1, **noted: bytes) -> list[bytes]:
    call = make_call(headers={name.replace("_", "-").encode(): value for name, value in noted.items()})
    stamped = headers.stamp(make_attempt(call, number=number))
    assert stamped.endswith(b"\r\n")
    return stamped[:-2].split(b"\r\n")


def test_the_number_of_the_attempt_is_always_written() -> None:
    """A receiving sidecar can tell a retry, with nothing configured at all."""
    assert lines(make_headers({})) == [b"x-outrider-attempt: 1"]
    assert lines(make_headers({}), number=3) == [b"x-outrider-attempt: 3"]


def test_what_is_set_is_written() -> None:
    """Constant values and those made per attempt, each on a line of its own."""
    headers = make_headers({"X-Service-Name": "{service}", "x-user": "{header:x-user-id}"})
    assert sorted(lines(headers, x_user_id=b"7")) == [
        b"X-Service-Name: booking",
        b"x-outrider-attempt: 1",
        b"x-user: 7",
    ]


def test_a_value_that_comes_out_empty_writes_no_line() -> None:
    """No header with nothing in it, whether known before or found out late."""
    headers = make_headers({"x-empty": "", "x-user": "{header:x-user-id}"})
    assert lines(headers) == [b"x-outrider-attempt: 1"]


def test_what_is_set_or_removed_is_owned() -> None:
    """The app's fields of these names are dropped, written in whatever case."""
    headers = make_headers({"X-Service-Name": "a", "X-User": "{header:x}"}, ("X-Debug",))
    assert headers.owned == {b"x-service-name", b"x-user", b"x-debug", b"x-outrider-attempt"}


def test_many_attempts_do_not_break_it() -> None:
    """A number beyond any sensible configuration still makes a head."""
    assert len(lines(make_headers({"a": "b"}), number=10_000)) == 2
