"""Entropy: ids have the form their standards ask for, and do not repeat."""

from __future__ import annotations

import os
import re
import time
import uuid

import pytest

from outrider.dataplane.policies.context import Context
from outrider.dataplane.runtime.ids import ID_FORMATS, Entropy
from tests.fakes import make_call


def test_uuid7_is_a_version_7_uuid_of_this_moment() -> None:
    """Version, variant and the millisecond stamp stand where RFC 9562 puts them."""
    before = int(time.time() * 1000)
    text = Entropy().uuid7().decode()
    after = int(time.time() * 1000)
    parsed = uuid.UUID(text)
    assert str(parsed) == text
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert before - 2 <= parsed.int >> 80 <= after + 2


def test_uuid4_is_a_version_4_uuid() -> None:
    """Version and variant stand where RFC 9562 puts them."""
    text = Entropy().uuid4().decode()
    parsed = uuid.UUID(text)
    assert str(parsed) == text
    assert parsed.version == 4
    assert parsed.variant == uuid.RFC_4122


def test_traceparent_is_valid_and_claims_no_sampling() -> None:
    """A new trace context is version 00, with fresh ids, not sampled."""
    entropy = Entropy()
    for _ in range(200):
        value = entropy.traceparent()
        assert re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-00", value)


def test_a_traceparent_of_ours_is_accepted_by_the_next_sidecar() -> None:
    """What one Outrider creates, the next one passes on."""
    made = Entropy().traceparent()
    call = make_call(headers={b"traceparent": made})
    Context(b"x-correlation-id", Entropy().uuid7).admit(call)
    assert call.traceparent == made


@pytest.mark.parametrize("kind", ["uuid7", "uuid4", "traceparent"])
def test_ids_do_not_repeat(kind: str) -> None:
    """Thousands of ids are all different."""
    make = getattr(Entropy(), kind)
    assert len({make() for _ in range(5000)}) == 5000


def test_uuid7_grows_with_time() -> None:
    """Ids of a later millisecond sort behind earlier ones."""
    entropy = Entropy()
    first = entropy.uuid7()
    stamp = first[:13]
    while (later := entropy.uuid7())[:13] == stamp:
        pass
    assert later > first


def test_the_variant_digit_takes_all_four_values() -> None:
    """The two free bits of the variant digit are random too."""
    entropy = Entropy()
    assert {entropy.uuid7()[19:20] for _ in range(500)} == {b"8", b"9", b"a", b"b"}
    assert {entropy.uuid4()[19:20] for _ in range(500)} == {b"8", b"9", b"a", b"b"}


def test_every_named_format_makes_a_uuid() -> None:
    """Each format the configuration can name produces a UUID."""
    for make in ID_FORMATS.values():
        uuid.UUID(make().decode())


class Fetched:
    """Stands for os.urandom and remembers what it has given."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.digits = b""
        self._random = os.urandom

    def __call__(self, size: int) -> bytes:
        given = self._random(size)
        self.sizes.append(size)
        self.digits += given.hex().encode()
        return given


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Fetched:
    made = Fetched()
    monkeypatch.setattr(os, "urandom", made)
    return made


def test_no_random_digit_is_used_twice(fetched: Fetched) -> None:
    """Ids of all kinds are made of digits that follow each other in what was fetched, none in two ids."""
    entropy = Entropy()
    made = []
    for _ in range(100):
        made += [entropy.uuid7()[-12:], entropy.traceparent()[3:35], entropy.uuid4()[-12:]]
    end = 0
    for digits in made:
        start = fetched.digits.find(digits, end)
        assert start >= 0
        end = start + len(digits)


def test_no_call_pays_for_the_ids_of_many_others(fetched: Fetched) -> None:
    """Random digits are fetched for a few calls at a time, and few are thrown away."""
    entropy = Entropy()
    for _ in range(100):
        entropy.uuid7()
        entropy.traceparent()
    assert max(fetched.sizes) <= 256
    assert sum(fetched.sizes) <= 1.25 * 100 * (19 + 48) / 2
