"""Measures Chime against its targets: prints a table, writes build/bench.json, exit code 0 if all are met.

Usage:
  bench [--only PART]... [--output FILE]

Parts: restart, heartbeat, agent, server, overload, recovery. Needs root: the hosts are namespaces, or the lab's.

Options:
  --only PART    this part; may be repeated
  --output FILE  where the figures go [default: build/bench.json]
"""

from __future__ import annotations

import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

from docopt import docopt

from tests.bench import agent, heartbeat, overload, recovery, restart, server
from tests.bench import figures as f
from tests.hosts import short_directory

PARTS = {
    "restart": restart.measure,
    "heartbeat": heartbeat.measure,
    "agent": agent.measure,
    "server": server.measure,
    "overload": overload.measure,
    "recovery": recovery.measure,
}


def main(argv: list[str] | None = None) -> int:
    """Return the exit code."""
    options = docopt(__doc__ or "", argv)
    wanted = options["--only"] or list(PARTS)
    if unknown := set(wanted) - PARTS.keys():
        print(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is cleaned up
    figures: list[f.Figure] = []
    errors: dict[str, str] = {}
    for part in wanted:
        began = time.monotonic()
        directory = short_directory()
        print(f"{part} ...", end=" ", flush=True, file=sys.stderr)
        try:
            figures += PARTS[part](directory)
        except Exception as error:
            traceback.print_exc()
            errors[part] = f"{type(error).__name__}: {error}"
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    ok = f.save(Path(options["--output"]), figures, errors)
    print(f.show(figures))
    for part, error in errors.items():
        print(f"FAILED  {part}: {error}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
