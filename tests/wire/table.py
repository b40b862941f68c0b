"""The whole table through Outrider and every other proxy that is installed, as Markdown.

python -m tests.wire.table                      # all of them
python -m tests.wire.table nginx -k "TE.CL"     # one proxy, some cases, with the reasons
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

import uvloop

from tests.wire.cases import CASES
from tests.wire.driver import Target, run
from tests.wire.model import Case
from tests.wire.peers import Peer, peers, running

# What no case may take, in seconds: a proxy that never answers must not stop the table.
_LIMIT = 30.0

_REASON = 140  # characters of it in the list
# Between two cases, in seconds: so that a proxy notices that the connections of the last one have ended.
_SETTLE = 0.008

Wrong = dict[str, list[str]]


async def put_to(peer: Peer, folder: Path, cases: Sequence[Case]) -> Wrong:
    """Run the cases through a peer; what was wrong, by the names of the cases that failed."""
    wrong: Wrong = {}
    async with Target() as target:
        with (
            running(peer, folder, target.port) as usual,
            running(peer, folder, target.port, short=True) as short,
        ):
            for case in cases:
                try:
                    async with asyncio.timeout(_LIMIT):
                        reasons = await run(case, short if case.limits == "short" else usual, target)
                except (OSError, TimeoutError) as error:
                    reasons = [f"{type(error).__name__}: {error}"]
                if reasons:
                    wrong[case.name] = reasons
                await target.drop_all()
                await asyncio.sleep(_SETTLE)
    return wrong


def markdown(results: dict[str, Wrong], cases: Sequence[Case]) -> str:
    """Groups down, proxies across, passed of all in the cells; then what each proxy failed."""
    groups = list(dict.fromkeys(case.group for case in cases))
    lines = [f"| class | {' | '.join(results)} |", f"|---|{'---:|' * len(results)}"]
    for group in [*groups, "all"]:
        names = [case.name for case in cases if group in (case.group, "all")]
        cells = [f"{sum(name not in wrong for name in names)}/{len(names)}" for wrong in results.values()]
        lines.append(f"| {group} | {' | '.join(cells)} |")
    for name, wrong in results.items():
        lines += ["", f"{name} fails {len(wrong)}:", ""]
        lines += [f"- {case}: {reasons[0][:_REASON]}" for case, reasons in wrong.items()]
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="proxies; all that are installed if there are none")
    parser.add_argument("-k", default="", help="only cases whose name contains this")
    parser.add_argument("-v", action="store_true", help="say why a case failed")
    options = parser.parse_args()
    cases = [case for case in CASES if options.k in case.name]
    wanted = {name.lower() for name in options.names}
    results: dict[str, Wrong] = {}
    for peer in peers():
        if peer.program is None or (wanted and peer.name.lower() not in wanted):
            continue
        with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            results[peer.name] = runner.run(put_to(peer, Path(folder), cases))
    print(markdown(results, cases))
    if options.v:
        for name, wrong in results.items():
            for case, reasons in wrong.items():
                print(f"\n{name}, {case}:\n  " + "\n  ".join(reasons))


if __name__ == "__main__":
    main()
