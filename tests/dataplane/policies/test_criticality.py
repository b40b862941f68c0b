"""Who is shed first: what the route says can be done without, and what is done for such a call."""

from __future__ import annotations

import pytest

from outrider.dataplane.policies.criticality import sheddable
from tests.fakes import make_call, make_route


@pytest.mark.parametrize("critical", [None, True, False])
@pytest.mark.parametrize("said", [None, b"false", b"False", b"true", b"", b"false, true", b"0"])
def test_less_can_be_said_but_not_more(critical: bool | None, said: bytes | None) -> None:
    """`false` holds, whoever says it; anything else changes nothing."""
    headers = {} if said is None else {b"X-Outrider-Critical": said}
    call = make_call(headers=headers, route=make_route(critical=critical))
    assert sheddable(call) == (critical is False or said in (b"false", b"False"))
