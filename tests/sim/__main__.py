"""The simulator's command line.

Usage:
  sim [--seeds N] [--first K] [--processes P] [--wide SHARE]
  sim scenario FILE...
  sim story SEED [--wide SHARE]
  sim speed
  sim words

`story`: the shortest run that fails as this seed does, and who decided what in it. `speed`: simulated hours of 5 nodes
and 20 VMs in a minute of one core. `words`: all that a scenario can say.

Options:
  --seeds N      how many random runs [default: 2000]
  --first K      the first seed; else it is chosen from the date and the time
  --processes P  how many at a time; else one for each core
  --wide SHARE   share of the runs in which state goes back, two servers run, or a node lies; else as `chaos` says
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import docopt

from tests.sim import chaos, commands, facts, runner, scenario
from tests.sim.engine import Violation
from tests.sim.story import Story

SPEED_S = 20.0
SPEED_RUN_S = 4 * 3600.0  # some ten faults an hour
SPEED_SEED = 5_000_000


def main(argv: list[str]) -> int:
    """The exit code."""
    args = docopt.docopt(__doc__, argv)
    if args["--wide"]:
        chaos.WIDENED = float(args["--wide"])
    if args["scenario"]:
        return max(_scenario(Path(name)) for name in args["FILE"])
    if args["story"]:
        runner.explain(int(args["SEED"]), print)
        return 0
    if args["speed"]:
        return _speed()
    if args["words"]:
        print("Commands\n  " + "\n  ".join(commands.COMMANDS.help()))
        print("Facts, after `expect`\n  " + "\n  ".join(facts.FACTS.help()))
        return 0
    first = int(args["--first"]) if args["--first"] else runner.today()
    return _seeds(range(first, first + int(args["--seeds"])), int(args["--processes"] or 0))


def _seeds(seeds: range, processes: int) -> int:
    began, summary, failed = time.monotonic(), runner.Summary(), []
    print(f"sim: seeds {seeds.start} to {seeds.stop - 1}", flush=True)
    for outcome in runner.run_seeds(seeds, processes):
        summary.add(outcome)
        if outcome.violation:
            failed.append(outcome.seed)
            print(f"seed {outcome.seed}: {outcome.violation}", flush=True)
        if summary.seeds % 2000 == 0:
            print(f"  {summary.seeds} of {len(seeds)} after {time.monotonic() - began:.0f} s", flush=True)
    if failed:
        runner.explain(min(failed), print)
    print(
        f"sim: {summary.seeds} seeds, {summary.hours:.0f} simulated hours, {summary.events} events, "
        f"{summary.violations} violations, {time.monotonic() - began:.0f} s"
    )
    return 1 if failed else 0


def _speed() -> int:
    runner.prepare()
    began, summary = time.process_time(), runner.Summary()
    while time.process_time() - began < SPEED_S:
        summary.add(runner.run_seed(SPEED_SEED + summary.seeds, nodes=5, vms=20, duration_s=SPEED_RUN_S))
    took = time.process_time() - began
    print(
        f"speed: {summary.hours / took * 60:.0f} simulated hours of 5 nodes and 20 VMs, ten faults an hour, "
        f"in a minute of one core ({summary.events / took:.0f} events a second, {summary.violations} violations)"
    )
    return 1 if summary.violations else 0


def _scenario(path: Path) -> int:
    runner.prepare()
    story = Story(on=True)
    try:
        scenario.run(scenario.read(path), story)
        verdict = ""
    except (scenario.ExpectationError, Violation) as wrong:
        verdict = str(wrong)
    except (scenario.Usage, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    for line in story.lines:
        print(line)
    print(f"{path}: {verdict or 'as expected'}")
    return 1 if verdict else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
