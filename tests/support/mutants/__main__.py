"""`make mutants`: try the mistakes of the tables and a sample of generated ones, a line each."""

from __future__ import annotations

import argparse
import sys
import time

from tests.support.mutants import tables
from tests.support.mutants.judge import Verdict, judge
from tests.support.mutants.mutant import Mutant


def main() -> int:
    """Print a verdict a mutant and the score; return 1 when one survived that nobody argued equivalent."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--only", default="", help="those whose name or path contains this")
    parser.add_argument("--generated", type=int, default=0, help="so many of those that are generated, too")
    parser.add_argument("--seed", default="1", help="of that sample")
    parser.add_argument("--at-once", type=int, default=2)
    options = parser.parse_args()
    by_hand = [mutant for mutant in tables.MUTANTS if options.only in mutant.name + " " + mutant.path]
    generated = _generated(options.generated, options.seed, options.only)
    tried = [mutant for mutant in by_hand + generated if not mutant.equivalent]
    argued = len(by_hand + generated) - len(tried)
    if not tried:
        sys.exit(f"no mistake has a name or path with {options.only!r} in it")
    sets = len({mutant.tests for mutant in tried})
    say(f"{len(tried)} mistakes; first their {sets} sets of tests without any, a minute or two each")
    started = time.monotonic()
    verdicts: list[Verdict] = []
    for verdict in judge(tried, options.at_once):
        verdicts.append(verdict)
        say(
            f"{'killed' if verdict.killed_by else 'SURVIVED':8}  {verdict.mutant.name}  ({verdict.killed_by})"
        )
    survived = [verdict.mutant for verdict in verdicts if not verdict.killed_by]
    killed = len(verdicts) - len(survived)
    say("")
    say(
        f"{killed} of {len(verdicts)} killed, {100 * killed / max(1, len(verdicts)):.1f} %;"
        f" {argued} argued equivalent; {(time.monotonic() - started) / 60:.0f} min"
    )
    return 1 if survived else 0


def _generated(number: int, seed: str, modules: str) -> list[Mutant]:
    if not number:
        return []
    from tests.support.mutants.generated import sample  # of the extra `mutants`

    return sample(number, seed, modules)


def say(text: str) -> None:
    """Print a line at once, to a terminal or a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
