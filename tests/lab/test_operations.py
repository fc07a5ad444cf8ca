"""Every command block of `docs/operations.md`, typed in the lab in the situation that its page is about."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.lab.lab import Lab
from wire import messages as m

PAGE = (Path(__file__).parents[2] / "docs/operations.md").read_text()
BLOCK = re.compile(r"^```console\n# on (the server|n1)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND_S = 300.0


class Block(NamedTuple):
    """Commands that are typed one after the other: on the server's host, or on n1."""

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
    "A VM does not run": page_of_a_vm,
}
"""What is done on each page; the beginning of the document is part of page 1."""


def test_no_block_is_left_out() -> None:
    assert SECTIONS.keys() == PAGES.keys() | {""}
    assert sum(map(len, SECTIONS.values())) == PAGE.count("```console")


@pytest.mark.parametrize("title", PAGES)
def test_page(lab: Lab, title: str) -> None:
    PAGES[title](lab, SECTIONS[title])
