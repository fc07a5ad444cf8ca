"""The lab for people: `python -m tests.lab up`, then look around and break things, then `down`.

Usage:
    up                             boot srv, n1, n2, n3 with Chime, and leave them running
    down                           end all labs that were left running
    shell HOST [COMMAND...]        a root shell in a host, or one command
    power-off HOST | power-on HOST
    cut HOST NET [in|out|both]     frames of mgmt or biz vanish; the link stays up
    pull HOST NET                  no carrier
    heal HOST                      both networks are whole again
    break HOST read-only|full|errors|hang    the disk at /srv/local; mend HOST undoes it
    kill HOST UNIT | hang HOST UNIT    SIGKILL or SIGSTOP to a service's process; resume HOST undoes the second
    vms                            the oracle: every qemu process, and where it runs
    sweep                          remove what killed runs left
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from tests.hosts import HostError
from tests.lab import remains
from tests.lab.host import ENVIRONMENT, LabHost, enter
from tests.lab.lab import Lab, Oracle, all_plugs
from tests.lab.wires import Wires

HOW_TO = """
The lab is up in {directory}: {hosts}

    make lab-shell HOST=srv CMD='chime-tool node list'     chime-tool has server and key
    make lab-shell HOST=srv CMD="chime-tool vm create web --vcpus 1 --memory 96M \\
        --kernel /srv/shared/vmlinuz --initrd /srv/shared/initrd.gz --cmdline 'console=ttyS0 chime.name=web' \\
        --serial-log /srv/shared/web.serial"
    make lab-shell HOST=n1                                 a shell: virsh, chime-agent, journalctl -u chime-agentd
    make lab-do DO='power-off n1'                          and power-on; all verbs: make lab-do DO=help
    make lab-down                                          remove it
"""
VERBS: dict[str, Callable[..., Any]] = {
    "power-off": LabHost.power_off,
    "power-on": LabHost.power_on,
    "cut": LabHost.cut,
    "pull": LabHost.pull,
    "heal": LabHost.heal,
    "break": LabHost.break_disk,
    "mend": LabHost.mend_disk,
    "kill": LabHost.kill,
    "hang": LabHost.hang,
    "resume": LabHost.resume,
}


def up() -> None:
    """Boot a lab and leave it running."""
    if remains.kept():
        sys.exit(f"a lab is up already, in {remains.kept()[0]}; make lab-down ends it")
    lab = Lab(keep=True)
    lab.detach()
    print(HOW_TO.format(directory=lab.dir, hosts=", ".join(lab.hosts)))


def attach() -> dict[str, LabHost]:
    """The hosts of the lab that was left running."""
    kept = remains.kept()
    if not kept:
        sys.exit("no lab is up; make lab-up boots one")
    directory = kept[0]
    state = dict(remains.states())[directory]
    wires = Wires(state["run"], state["subnets"])
    plugs = all_plugs(wires, state["hosts"])
    hosts = {name: LabHost(name, directory / name, plugs[name], wires, lifeline=False) for name in state["hosts"]}
    for host in hosts.values():
        host.adopt()
    return hosts


def shell(host: LabHost, command: list[str]) -> NoReturn:
    """Become a shell in the host."""
    if not host.is_on:
        sys.exit(f"{host.name} is off")
    terminal = {"TERM": os.environ.get("TERM", "dumb")}
    argv = [*enter(host.leader), *(command or ["bash", "-l"])]
    os.execvpe(argv[0], argv, {**ENVIRONMENT, **terminal})


def main(argv: list[str]) -> None:
    """One command."""
    verb, words = (argv or ["help"])[0], argv[1:]
    if verb in ("up", "down", "sweep") and not words:
        {"up": up, "down": down, "sweep": remains.sweep}[verb]()
    elif verb == "vms" and not words:
        for uuid, group in Oracle(attach()).processes().items():
            print(uuid, *(f"{seen.name} on {seen.host} (pid {seen.pid}, {seen.state})" for seen in group))
    elif (verb in VERBS or verb == "shell") and words:
        hosts = attach()
        if words[0] not in hosts:
            sys.exit(f"no host {words[0]}: there are {', '.join(hosts)}")
        if verb == "shell":
            shell(hosts[words[0]], words[1:])
        try:
            VERBS[verb](hosts[words[0]], *words[1:])
        except (HostError, KeyError, TypeError) as error:
            sys.exit(f"{verb}: {error}")
    else:
        sys.exit(__doc__)


def down() -> None:
    """End what `up` left."""
    for directory in remains.kept():
        remains.remove(directory)
        print(f"removed the lab in {directory}")


if __name__ == "__main__":
    main(sys.argv[1:])
