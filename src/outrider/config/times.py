"""Times that cannot work together: of the call, of its attempts, and of the pauses between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider.config.schema import Retry
from outrider.config.source import Document, KeyPath
from outrider.model.units import format_duration

if TYPE_CHECKING:
    from outrider.config.resolve import Effective


def check_times(document: Document, at: KeyPath, policy: Effective) -> None:
    """Timeouts that cannot work together, where one of them is written."""
    tries = policy.attempt_timeout
    whole = policy.timeout
    retry = policy.retry
    if whole is not None and tries is not None and tries > whole and written(document, at, "attempt_timeout"):
        message = "attempt_timeout is longer than timeout: no attempt can ever take that long"
        follows = layers_of(document, at, "timeout")
        document.complain((*at, "attempt_timeout"), message, "shorten it, or raise timeout", warn=True, follows=follows)
    elif whole is not None and retry is not None:
        _check_retries_fit(document, at, policy, retry, whole)
    if whole is not None and policy.total_timeout is not None and policy.total_timeout < whole:
        key = next((key for key in ("total_timeout", "timeout") if written(document, at, key)), None)
        if key is not None:
            message = "total_timeout is shorter than timeout, which can never pass"
            follows = layers_of(document, at, "timeout", "total_timeout")
            hint = "total_timeout includes the body of the answer"
            document.complain((*at, key), message, hint, warn=True, follows=follows)
    keyed = retry is not None and retry.idempotency_key is not None
    if retry is not None and not keyed and {"POST", "PATCH"} & set(retry.methods) and written(document, at, "retry"):
        document.complain(
            (*at, "retry", "methods"),
            "POST and PATCH are repeated here even when the target may already have acted",
            "add idempotency_key: generate, and make sure that the target recognises a repetition",
            warn=True,
        )


def _check_retries_fit(document: Document, at: KeyPath, policy: Effective, retry: Retry, whole: float) -> None:
    """Whether `timeout` leaves time for the retries that are asked for: for one after an attempt that times out, and
    for the pauses of all of them, where their number or their pauses are written."""
    if not retry.max_retries:
        return
    first, cap = retry.backoff
    tries = policy.attempt_timeout
    key = next((key for key in ("attempt_timeout", "timeout", "retry") if written(document, at, key)), None)
    if key is not None and tries is not None and "timeout" in retry.on_errors and tries + first / 2 >= whole:
        message = (
            f"attempt_timeout ({format_duration(tries)}) leaves no time within timeout ({format_duration(whole)})"
            " for a retry of an attempt that gets no answer"
        )
        follows = layers_of(document, at, "timeout", "attempt_timeout", "retry")
        hint = "shorten it, raise timeout, or write retry: false"
        document.complain((*at, key), message, hint, warn=True, follows=follows)
        return
    # With full jitter a pause takes half of its longest on average.
    pauses = sum(min(cap, first * 2.0**number) / 2 for number in range(retry.max_retries))
    place = next(
        (place for name in ("backoff", "max_retries") if (place := (*at, "retry", name)) in document.marks), None
    )
    if place is not None and pauses >= whole:
        message = (
            f"{retry.max_retries} retries pause for about {format_duration(round(pauses, 3))} in all, and timeout is"
            f" {format_duration(whole)}: not all of them can be made"
        )
        follows = layers_of(document, at, "timeout", "retry")
        hint = "shorten backoff, raise timeout, or lower max_retries"
        document.complain(place, message, hint, warn=True, follows=follows)


def layers_of(document: Document, at: KeyPath, *keys: str) -> list[KeyPath]:
    """Where these keys may stand that hold at a service or route: there, in the service, in a policy or in defaults."""
    policies = document.values.get("policies")
    bundles: list[KeyPath] = [("policies", name) for name in policies] if isinstance(policies, dict) else []
    places: list[KeyPath] = [at, at[:2], *bundles, ("defaults",)]
    return [(*place, key) for place in places for key in keys]


def written(document: Document, at: KeyPath, key: str) -> bool:
    """Whether a key stands there itself."""
    return (*at, key) in document.marks
