"""The demo: `make demo`, or as root `python -m contrib.demo.demo [--keep]` at the top of a checkout.

Exit code 0 only if every step was checked and nothing is left behind; `build/demo.json` says the same.
With --keep the cluster stays up afterwards (if all went well); `make down` ends it.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from contrib.demo.fleet import NODES, Fleet
from contrib.demo.story import CRASHED, Story
from contrib.demo.timeline import Failed, Look, Timeline
from tests.hosts import GuestError, HostError, NetworkError, Watch, build_guest, left_behind

ROOT = Path(__file__).resolve().parents[2]
ENDED_BY = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
KNOWN = (Failed, GuestError, HostError, NetworkError, KeyboardInterrupt)


def main(argv: list[str]) -> int:
    """Return the exit code."""
    if argv not in ([], ["--keep"]):
        print(__doc__, file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("the hosts of the demo are namespaces, which need root: type make demo", file=sys.stderr)
        return 2
    for number in ENDED_BY:
        signal.signal(number, _interrupt)
    timeline = Timeline(ROOT / "build" / "demo.json")
    keep = bool(argv)
    fleets: list[Fleet] = []
    ok, interrupted = False, False
    try:
        _play(timeline, keep, fleets)
        ok = True
    except KeyboardInterrupt as error:
        interrupted = True
        timeline.fail(error)
    except Exception as error:
        timeline.fail(error)
        if not isinstance(error, KNOWN):
            traceback.print_exc()
        if fleets:
            timeline.logs(fleets[0].log_files())
    _ignore_signals()  # from here on only clean-up, which is not to be interrupted
    if ok and keep:
        _leave_running(timeline, fleets[0])
    else:
        ok = _clean_up(timeline, fleets) and ok
    timeline.write_report(ok)
    what = "every step was checked" if ok else "interrupted" if interrupted else "FAILED"
    print()
    timeline.say(f"demo: {what} (build/demo.json)", "green" if ok else "red")
    return 0 if ok else 130 if interrupted else 1


def _play(timeline: Timeline, keep: bool, fleets: list[Fleet]) -> None:
    """All steps; the fleet is put into `fleets` as soon as there is one. Raises what went wrong."""
    timeline.say("the guest: a kernel of Debian and an initramfs of busybox")
    kernel, initrd = build_guest(ROOT / "build" / "guest")
    timeline.say("four hosts: one for the server, three nodes")
    fleet = Fleet(kernel, initrd, keep)
    fleets.append(fleet)
    with Watch(fleet.processes) as watch:
        for title, step in Story(fleet, timeline, watch).steps():
            timeline.begin(title)
            timeline.end(step())
            timeline.write_report(ok=False)


def _clean_up(timeline: Timeline, fleets: list[Fleet]) -> bool:
    """End everything; a step of its own, that fails when something is left."""
    timeline.begin("clean up: nothing is left behind")
    try:
        for fleet in fleets:
            fleet.close()
        timeline.expect(
            "no process, network device, mount or directory of the demo is left", lambda: _left(fleets), 10.0, 0.5
        )
    except Exception as error:
        timeline.fail(error)
        return False
    timeline.end("nothing is left")
    return True


def _left(fleets: list[Fleet]) -> Look:
    found = left_behind()
    for fleet in fleets:
        found += [f"qemu {seen.pid}" for group in fleet.processes().values() for seen in group]
    return Look(not found, found)


def _leave_running(timeline: Timeline, fleet: Fleet) -> None:
    process = fleet.identities()[CRASHED][0]
    fleet.cluster.detach()
    sudo = "sudo " if os.environ.get("SUDO_UID") else ""
    tool = f"{sudo}env CHIME_KEY={shlex.quote(str(fleet.operator_key))} {shlex.quote(str(fleet.bin / 'chime-tool'))}"
    timeline.say(f"the cluster stays up, in {fleet.dir}. To try:")
    print(
        f"\n  {tool} vm list\n"
        f"  {sudo}kill -9 {process}; sleep 3; {tool} event list --subject {CRASHED}\n"
        f"  {tool} node drain {NODES[1]} --dry-run\n"
        f"\nTo end it: make down",
        flush=True,
    )


def _interrupt(*_: Any) -> None:
    _ignore_signals()  # once is enough
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    for number in ENDED_BY:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
