"""python -m fuzz --messages 10000"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

from fuzz.campaign import FIRST_SEED, Campaign, campaign, explain, replay, report


def main() -> int:
    """Run; 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Mutated HTTP messages, both ways.")
    parser.add_argument("--messages", type=int, default=10_000, help="how many mutated messages")
    parser.add_argument("--seed", type=int, default=FIRST_SEED, help="where to begin; the same seed, the same messages")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with seeds of its own")
    parser.add_argument("--slots", type=int, default=64, help="cases at a time in each process")
    parser.add_argument("--case", metavar="SEED:NUMBER", help="run this one case, and shrink it if it fails")
    options = parser.parse_args()
    if options.case:
        found = replay(options.case)
        print(explain(found) if found is not None else f"case {options.case}: nothing wrong")
        return int(found is not None)
    share = -(-options.messages // options.jobs)
    if options.jobs == 1:
        result = campaign(options.seed, share, options.slots)
    else:
        result = Campaign()
        with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
            runs = [pool.submit(campaign, options.seed + n, share, options.slots) for n in range(options.jobs)]
            for run in runs:
                result.add(run.result())
    print(report(result))
    return int(bool(result.findings))


if __name__ == "__main__":
    sys.exit(main())
