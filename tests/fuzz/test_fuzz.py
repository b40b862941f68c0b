"""A fixed share of the mutated messages of `python -m fuzz`, both ways, on every run of the tests."""

from __future__ import annotations

import pytest
import uvloop
from fuzz.campaign import campaign, report
from fuzz.corpus import REQUESTS, RESPONSES
from fuzz.lab import Lab, Tally
from fuzz.mutate import Case, Script

# Ten thousand and some messages in all. New seeds are for the long runs: what fails here must fail every time.
SEEDS = (1, 2, 3)
MESSAGES = 3400


@pytest.mark.parametrize("seed", SEEDS)
def test_no_mutated_message_breaks_a_promise(seed: int) -> None:
    """Whatever comes in: what goes out is clean, belongs to its request, comes in time, and leaves nothing behind."""
    result = campaign(seed, MESSAGES)
    assert not result.findings, report(result)
    tally = result.tally
    assert tally.messages >= MESSAGES
    # A run in which everything is refused at the door would prove nothing.
    assert min(tally.forwarded, tally.passed_on, tally.refused) > MESSAGES / 10
    assert tally.broken > MESSAGES / 200


def test_what_the_mutations_start_from_gets_through() -> None:
    """Every request of the corpus reaches the target, and every answer the app, so mutations begin on the far side."""

    async def run(cases: list[Case]) -> Tally:
        async with Lab(4) as lab:
            return await lab.run(lambda number: cases[number], range(len(cases)))

    said = Script((b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",))
    asked = [Case(f"request {n}", (data,), (said,) * 9, "plain", 0, False, False) for n, data in enumerate(REQUESTS)]
    tally = uvloop.run(run(asked))
    assert not tally.findings
    assert tally.forwarded >= len(REQUESTS)

    call = b"GET /user/x HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    scripts = [Script((data,), "close") for data in RESPONSES]
    answered = [Case(f"answer {n}", (call,), (said,), "plain", 0, False, False) for n, said in enumerate(scripts)]
    tally = uvloop.run(run(answered))
    assert not tally.findings
    assert (tally.forwarded, tally.refused, tally.broken) == (len(RESPONSES), 0, 0)
