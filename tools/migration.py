"""The options that `vm migrate` and `node evacuate` share, as the fields of their requests."""

from __future__ import annotations

from typing import Any

from tools.options import Args, UsageError
from tools.units import seconds, whole
from wire.types import OnTimeout, Tls

CHOICES = (("--tls", tuple(Tls)), ("--on-timeout", tuple(OnTimeout)))


def fields(args: Args) -> dict[str, Any]:
    """Where to, over which network, and how. Raises UsageError."""
    for option, allowed in CHOICES:
        if args[option] not in allowed:
            raise UsageError(f"{option} {args[option]!r}: allowed are {', '.join(allowed)}")
    if args["--network"] is not None and not args["--network"].strip():
        raise UsageError("--network is empty: give management, business, an interface, a subnet or an address")
    timeout_s = seconds("--migration-timeout", args["--migration-timeout"])
    if timeout_s <= 0:
        raise UsageError(f"--migration-timeout {args['--migration-timeout']}: more than 0 seconds")
    options = {
        "bandwidth_mib_s": whole("--bandwidth", args["--bandwidth"]),
        "auto_converge": not args["--no-auto-converge"],
        "tls": args["--tls"],
        "timeout_s": timeout_s,
        "on_timeout": args["--on-timeout"],
        "local_disks": args["--with-local-disks"],
    }
    return {"to": args["--to"], "network": args["--network"] or "", "options": options}
