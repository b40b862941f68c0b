"""Measure, and write bench/chaos/results.md and results.svg."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.chaos.plot import plot
from bench.chaos.proxies import ENVOY, GETS, SERVICE, Lane, direct, envoy_lane, outrider
from bench.chaos.report import report
from bench.chaos.run import LOG, Builder, conduct, free_ports
from bench.chaos.timeline import Timeline, one_endpoint, three_endpoints
from bench.setup import compiled_outrider

HERE = Path(__file__).resolve().parent
QUICK = 0.2


def main() -> None:
    """Run the timelines and report."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="length of the phases; 1 lasts about 3.5 minutes")
    parser.add_argument("--quick", action="store_true", help=f"a scale of {QUICK}, and nothing is written")
    parser.add_argument("--only", choices=("three", "one"), help="one timeline alone")
    parser.add_argument(
        "--service", default=SERVICE, metavar="YAML", help=f"settings of Outrider's service; default {SERVICE}"
    )
    parser.add_argument("--gets", default=GETS, metavar="YAML", help=f"settings of its route of GETs; default {GETS}")
    parser.add_argument("--compiled", action="store_true", help="measure Outrider as it is shipped, not its source")
    options = parser.parse_args()
    scale = QUICK if options.quick else options.scale

    if options.compiled:
        compiled_outrider()

    def ours(ports: Sequence[int]) -> Lane:
        return outrider(ports, free_ports(3), service=options.service, gets=options.gets, compiled=options.compiled)

    timelines: dict[str, tuple[Timeline, list[Builder]]] = {
        "three": (
            three_endpoints(),
            [
                ours,
                lambda ports: envoy_lane(ENVOY, ports, free_ports(1)[0]),
                lambda ports: envoy_lane("envoy hedging", ports, free_ports(1)[0], hedge=True),
            ],
        ),
        "one": (
            one_endpoint(),
            [
                ours,
                lambda ports: envoy_lane("envoy panic routing", ports, free_ports(1)[0]),
                lambda ports: envoy_lane("envoy ejection as breaker", ports, free_ports(1)[0], panic=False),
                direct,
            ],
        ),
    }
    LOG.parent.mkdir(parents=True, exist_ok=True)
    LOG.write_bytes(b"")
    results = [
        conduct(timeline.scaled(scale), builders)
        for name, (timeline, builders) in timelines.items()
        if options.only in (None, name)
    ]
    build = "compiled" if options.compiled else "not compiled"
    given = ", ".join(text for text, usual in ((options.service, SERVICE), (options.gets, GETS)) if text != usual)
    text = report(results, scale, f"{build}, with {given}" if given else build)
    print(text)
    if options.quick or options.only:
        print("nothing written: not a whole run", file=sys.stderr)
        return
    (HERE / "results.md").write_text(text)
    (HERE / "results.svg").write_text(plot(results))


if __name__ == "__main__":
    main()
