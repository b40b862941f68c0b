"""Which calls are shed first when room becomes tight: those of a service that the app can do without, and everything
that is done for the sake of such a call, however many hops away.

It travels as `x-outrider-critical: false`. The app and proven callers may say that of their own calls; nothing can be
said to make a call more critical.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from outrider.dataplane.call import Call

CRITICAL: Final = b"x-outrider-critical"


def sheddable(call: Call) -> bool:
    """Whether the route, the app or the app's own caller has said that this call is not critical."""
    return call.route.critical is False or said_not_critical(call)


def said_not_critical(call: Call) -> bool:
    """Whether it came with the word that it is not critical."""
    return CRITICAL in call.noted and call.noted[CRITICAL].lower() == b"false"
