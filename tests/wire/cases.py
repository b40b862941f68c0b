"""What an app, an attacker behind it, or a target may put on the wire, and what must come of it.

Tables, one per class of attack or fault. A case says what is safe, not what Outrider does: where RFC 9110 and 9112
leave a choice, the expectation takes every safe one, so that the same table can be put to any proxy. `/user/x` is what
the app asks for; `/smuggled` is the canary that no target may ever be asked for.
"""

from __future__ import annotations

from tests.wire.model import Case
from tests.wire.tables import answers, chunks, connections, exchanges, fields, framing

CASES: tuple[Case, ...] = (
    *framing.CL_TE,
    *framing.TE_CL,
    *framing.BOTH,
    *framing.DUPLICATE_CL,
    *framing.CL_GRAMMAR,
    *framing.TE_OBFUSCATION,
    *framing.TE_IN_1_0,
    *framing.CL_0,
    *framing.ZERO_CL,
    *fields.LINE_ENDS,
    *fields.COLON,
    *fields.HOST_FIELD,
    *fields.REQUEST_LINE,
    *fields.CREDENTIALS,
    *fields.HOP_BY_HOP,
    *chunks.CHUNK_SIZE,
    *chunks.CHUNK_EXTENSIONS,
    *chunks.TRAILERS,
    *connections.EXPECT,
    *connections.VERSIONS,
    *connections.PIPELINING,
    *connections.SIZES,
    *connections.SLOW,
    *answers.TRUNCATED,
    *answers.MALFORMED,
    *answers.RESPONSE_QUEUE,
    *exchanges.INTERIM,
    *exchanges.RETRIES,
    *exchanges.UPGRADE,
)
