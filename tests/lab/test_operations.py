"""Every command block of `docs/operations.md`, typed in the lab in the situation that its page is about."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.lab.lab import Lab
from wire import messages as m

PAGE = (Path(__file__).parents[2] / "docs/operations.md").read_text()
BLOCK = re.compile(r"^```console\n# on (the server|srv|n1)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND_S = 300.0


class Block(NamedTuple):
    """Commands that are typed one after the other: in an operator's shell, on the server's host as root, or on n1."""

    where: str
    commands: tuple[str, ...]


def sections() -> dict[str, list[Block]]:
    """The blocks of each section by its number or title; the beginning has the name ""."""
    parts = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)
    titles = ["", *(title.split(". ")[0] for title in parts[1::2])]
    texts = parts[::2]
    found = {
        title: [Block(where, tuple(line[2:] for line in body.splitlines())) for where, body in BLOCK.findall(text)]
        for title, text in zip(titles, texts, strict=True)
    }
    return {title: blocks for title, blocks in found.items() if blocks}


SECTIONS = sections()


def type_in(lab: Lab, block: Block, **variables: str) -> str:
    """Types the block where it belongs; every command must end well. Gives what was said."""
    host = lab.server if block.where == "the server" else lab.host(block.where)
    said = []
    for command in block.commands:
        done = host.run("sh", "-c", command, env=variables, check=False, timeout_s=COMMAND_S)
        print(f"{host.name}$ {command}\n{done.stdout}{done.stderr}")
        assert done.returncode == 0, f"{command}: exit {done.returncode}: {done.stdout}{done.stderr}"
        said.append(done.stdout + done.stderr)
    return "\n".join(said)


def guests(lab: Lab, *names: str) -> dict[str, str]:
    """VMs that count, on n1: name -> UUID."""
    return {name: lab.create_guest(name, node="n1") for name in names}


def run_elsewhere(lab: Lab, uuids: dict[str, str]) -> None:
    """They run once, not on n1, and count."""
    for name, uuid in uuids.items():
        assert lab.process(uuid).host != "n1", f"{name} is on n1"
        lab.counting(name)


def has_nothing(lab: Lab) -> bool:
    """n1 has no definition left."""
    return not lab.host("n1").virsh("list", "--all", "--name").strip()


def page_1(lab: Lab, blocks: list[Block]) -> None:
    """Power is lost; drained with a word, rebuilt; the node is mended."""
    uuids = guests(lab, "web-1", "web-2")
    lab.host("n1").power_off()
    lab.wait_nodes("n1", health="unreachable")
    begin, acknowledge = SECTIONS[""]
    assert "unreachable" in type_in(lab, begin)
    alarm = next(alarm for alarm in lab.alarms() if alarm["subject"] == "n1")
    type_in(lab, acknowledge, ALARM=str(alarm["id"]))
    check, rebuild, mended = blocks
    type_in(lab, check)
    type_in(lab, rebuild)
    run_elsewhere(lab, uuids)
    lab.host("n1").power_on()
    lab.wait_nodes("n1")
    lab.wait(lambda: has_nothing(lab), "n1 has removed what was moved")
    type_in(lab, mended)
    run_elsewhere(lab, uuids)
    lab.wait(lambda: lab.node("n1")["schedulable"], "it takes VMs again")


def page_2a(lab: Lab, blocks: list[Block]) -> None:
    """The management network is down: migrated on the node, drained there and at the server."""
    uuids = guests(lab, "web-1", "web-2")
    n1 = lab.host("n1")
    n1.pull("mgmt")
    lab.wait_nodes("n1", health="unreachable")
    check, migrate, told = blocks
    type_in(lab, check)
    interface, target = n1.plugs["biz"].inner, lab.host("n2").address("biz")
    type_in(lab, migrate, INTERFACE=interface, DEST=target, UUID=uuids["web-1"])
    run_elsewhere(lab, uuids)
    lab.wait(lambda: all(lab.vm(uuid)["node"] == "n2" for uuid in uuids.values()), "the server knows where they are")
    type_in(lab, told)
    n1.heal()
    lab.wait_nodes("n1")
    lab.wait(lambda: has_nothing(lab), "n1 has removed what was moved")
    lab.tool("node", "rebuild", "n1", "--yes")
    lab.tool("node", "enable", "n1")
    run_elsewhere(lab, uuids)


def page_2b(lab: Lab, blocks: list[Block]) -> None:
    """The business network is down: one VM is migrated over the management network, then all."""
    uuids = guests(lab, "web-1", "web-2", "web-3")
    lab.host("n1").pull("biz")
    lab.wait_nodes("n1", health="error")
    check, one, others, follow, mended = blocks
    assert "business-network-down" in type_in(lab, check)
    type_in(lab, one)
    type_in(lab, others)
    evacuation = lab.ask(m.OpList())["items"][-1]
    assert evacuation["kind"] == "evacuate"
    type_in(lab, follow, OP=evacuation["id"])
    run_elsewhere(lab, uuids)
    lab.host("n1").heal()
    lab.wait_nodes("n1")
    type_in(lab, mended)


def page_2c(lab: Lab, blocks: list[Block]) -> None:
    """Both networks are down: stopped on the console, rebuilt elsewhere."""
    uuids = guests(lab, "web-1")
    n1 = lab.host("n1")
    n1.pull("mgmt")
    n1.pull("biz")
    lab.wait_nodes("n1", health="unreachable")
    check, drain, rebuild = blocks
    type_in(lab, check)
    type_in(lab, drain)
    assert not lab.oracle.running(uuids["web-1"])
    type_in(lab, rebuild)
    run_elsewhere(lab, uuids)
    n1.heal()
    lab.wait_nodes("n1")
    lab.wait(lambda: has_nothing(lab), "n1 has removed what was moved")
    lab.tool("node", "enable", "n1")


def page_3(lab: Lab, blocks: list[Block]) -> None:
    """The agent does not come back by itself."""
    uuids = guests(lab, "web-1")
    lab.host("n1").systemctl("stop", "chime-agentd")
    lab.wait(lambda: "agent-lost" in lab.node("n1")["reasons"], "it is missed")
    check, restart, after = blocks
    type_in(lab, check)
    assert "active" in type_in(lab, restart)
    lab.wait_nodes("n1")
    type_in(lab, after)
    assert lab.process(uuids["web-1"]).host == "n1"
    lab.counting("web-1")


def page_4(lab: Lab, blocks: list[Block]) -> None:
    """A disk fails: the VMs leave; what is left is stopped and rebuilt."""
    uuids = guests(lab, "web-1", "web-2")
    lab.host("n1").break_disk("read-only")
    lab.wait_nodes("n1", health="error")
    check, leave, stop, mended = blocks
    assert "storage" in type_in(lab, check)
    type_in(lab, leave)
    run_elsewhere(lab, uuids)
    type_in(lab, stop)
    lab.host("n1").mend_disk()
    lab.wait_nodes("n1")
    type_in(lab, mended)
    run_elsewhere(lab, uuids)


FOLDER = "/srv/shared/backup"
BUNDLE = "/srv/shared/n1.bundle"


def take_backup(lab: Lab) -> None:
    """As the page on backups says."""
    (block,) = SECTIONS["Before you need it: backups"]
    lab.server.run("mkdir", "-p", FOLDER)
    type_in(lab, block, BACKUP=FOLDER)


def status(lab: Lab) -> dict[str, Any]:
    """What the server waits for."""
    return dict(lab.ask(m.ServerStatus()))


def page_5(lab: Lab, blocks: list[Block]) -> None:
    """A backup in which running VMs were stopped is restored while a node is off; one is kept, one stopped."""
    uuids = guests(lab, "web-1", "web-2")
    for name in uuids:
        lab.tool("vm", "stop", name, "--force", "--yes")
    take_backup(lab)
    for name in uuids:
        lab.tool("vm", "start", name)
    before = {name: lab.process(uuid) for name, uuid in uuids.items()}
    lab.host("n3").power_off()
    restore, look, without, decide = blocks
    type_in(lab, restore, BACKUP=FOLDER)
    lab.wait_server()
    lab.wait(lambda: status(lab)["waiting_for"] == ["n3"], "the others have reported")
    assert "n3" in type_in(lab, look)
    type_in(lab, without)
    lab.wait(lambda: len(status(lab)["held_vms"]) == 2 and lab.alarms("recovery-held"), "both VMs are held")
    lab.wait(lambda: lab.node("n1")["commandable"], "n1 takes commands")
    said = type_in(lab, decide)
    assert said.count("stops web-1 on n1") == 1 < said.count("stops web-2 on n1")  # the list, before web-1 was decided
    lab.no_process(uuids["web-2"])
    assert lab.process(uuids["web-1"]) == before["web-1"] and not lab.alarms("recovery-held")


def page_6(lab: Lab, blocks: list[Block]) -> None:
    """Another machine gets the old one's address, key and database."""
    uuids = guests(lab, "web-1")
    take_backup(lab)
    before = lab.process(uuids["web-1"])
    lab.server.systemctl("disable", "--now", "chimed")
    lab.server.run("sh", "-c", "rm -rf /var/lib/chime/* /etc/chime/chimed.toml")
    make, look = blocks
    type_in(lab, make, BACKUP=FOLDER)
    lab.wait_server()
    type_in(lab, look)
    lab.wait_nodes("n1", "n2", "n3")
    lab.wait(lambda: not status(lab)["recovering"], "all nodes have reported")
    assert lab.process(uuids["web-1"]) == before
    lab.counting("web-1")


def page_7(lab: Lab, blocks: list[Block]) -> None:
    """The database is put back with cp, and a node cannot be heard."""
    database, kept = "/var/lib/chime/chime.db", "/srv/shared/kept"
    uuids = guests(lab, "web-1")
    lab.server.systemctl("stop", "chimed")
    lab.server.run("sh", "-c", f"mkdir -p {kept} && cp -p {database}* {kept}/")
    lab.server.systemctl("start", "chimed")
    lab.wait_server()
    lab.wait_nodes("n1", "n2", "n3")
    lab.tool("vm", "migrate", "web-1", "--to", "n2", "--yes")
    before = lab.process(uuids["web-1"])
    lab.host("n3").power_off()
    lab.server.systemctl("stop", "chimed")
    lab.server.run("sh", "-c", f"rm {database}* && cp -p {kept}/* /var/lib/chime/ && rm -r {kept}")
    lab.server.systemctl("start", "chimed")
    lab.wait_server()
    lab.wait(lambda: lab.alarms("server-behind"), "it is known")
    lab.wait(lambda: status(lab)["waiting_for"] == ["n3"], "the others are heard")
    look, there, disable, begin = blocks
    assert "behind n" in " ".join(type_in(lab, look).split())
    type_in(lab, there)
    type_in(lab, disable)
    lab.server.systemctl("enable", "--now", "chimed")
    lab.wait_server()
    lab.wait(lambda: status(lab)["waiting_for"] == ["n3"], "the others are heard again")
    type_in(lab, begin)
    lab.wait(lambda: status(lab)["waiting_for"] == ["n3"] and not status(lab)["behind"], "it recovers")
    assert lab.process(uuids["web-1"]) == before
    lab.host("n3").power_on()
    lab.wait(lambda: not status(lab)["recovering"], "all nodes have reported")
    lab.wait(lambda: lab.vm("web-1")["node"] == "n2", "it is known where it is")
    assert lab.process(uuids["web-1"]) == before


def page_8(lab: Lab, blocks: list[Block]) -> None:
    """A node is given up, and its machine comes back under its name with all its state; then it gets another key."""
    uuids = guests(lab, "web-1", "web-2")
    n1 = lab.host("n1")
    n1.power_off()
    lab.wait_nodes("n1", health="unreachable")
    forget, add, join, rekey, after = blocks
    type_in(lab, forget)
    run_elsewhere(lab, uuids)
    type_in(lab, add, BUNDLE=BUNDLE)
    n1.power_on()
    type_in(lab, join, BUNDLE=BUNDLE)
    lab.wait_nodes("n1")
    lab.wait(lambda: has_nothing(lab), "n1 has removed what was moved")
    type_in(lab, rekey, BUNDLE=BUNDLE)
    type_in(lab, join, BUNDLE=BUNDLE)
    lab.wait_nodes("n1")
    type_in(lab, after)
    run_elsewhere(lab, uuids)


def page_9(lab: Lab, blocks: list[Block]) -> None:
    """The agent's state of before a migration is put back."""
    uuids = guests(lab, "web-1", "web-2")
    n1, snapshot = lab.host("n1"), "/var/lib/chime-agent/snapshot"
    n1.run("cp", "-p", snapshot, f"{snapshot}.kept")
    lab.tool("vm", "migrate", "web-1", "--to", "n2", "--yes")
    n1.systemctl("stop", "chime-agentd")
    n1.run("mv", f"{snapshot}.kept", snapshot)
    n1.systemctl("start", "chime-agentd")
    look, after = blocks
    lab.wait_nodes("n1")
    assert "an older state was put back" in type_in(lab, look)
    type_in(lab, after)
    assert lab.process(uuids["web-1"]).host == "n2" and lab.process(uuids["web-2"]).host == "n1"
    lab.counting("web-1")
    lab.counting("web-2")


def page_of_backups(lab: Lab, blocks: list[Block]) -> None:
    """A backup, while the server runs; again, over the one before."""
    take_backup(lab)
    take_backup(lab)
    assert lab.server.run("ls", FOLDER).stdout.split() == ["chime.db", "chimed.toml", "server.key"]


def page_of_a_vm(lab: Lab, blocks: list[Block]) -> None:
    """A VM does not run."""
    guests(lab, "web-1")
    (look,) = blocks
    assert "web-1" in type_in(lab, look)


PAGES: dict[str, Callable[[Lab, list[Block]], None]] = {
    "1": page_1,
    "2a": page_2a,
    "2b": page_2b,
    "2c": page_2c,
    "3": page_3,
    "4": page_4,
    "5": page_5,
    "6": page_6,
    "7": page_7,
    "8": page_8,
    "9": page_9,
    "A VM does not run": page_of_a_vm,
    "Before you need it: backups": page_of_backups,
}
"""What is done on each page; the beginning of the document is part of page 1."""


def test_no_block_is_left_out() -> None:
    assert SECTIONS.keys() == PAGES.keys() | {""}
    assert sum(map(len, SECTIONS.values())) == PAGE.count("```console")


@pytest.mark.parametrize("title", PAGES)
def test_page(lab: Lab, title: str) -> None:
    PAGES[title](lab, SECTIONS[title])
