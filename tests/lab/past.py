"""State that goes back in time, and a second server: what administrators and backup software make, for the tests of it.

Nothing here is done through Chime: directories are copied, files are put back, and packets go elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.hosts import Qemu
from tests.lab.host import LabHost
from tests.lab.lab import CONFIG_FOLDER, OPERATOR_KEY, PORT, Lab
from tests.operator import Operator, toml
from wire import keys
from wire import messages as m

AGENT_STATE, SERVER_STATE, SECOND_STATE = "/var/lib/chime-agent", "/var/lib/chime", "/var/lib/chime-second"
DATABASE, CONFIG = f"{SERVER_STATE}/chime.db", f"{CONFIG_FOLDER}/chimed.toml"
SECOND_PORT, SECOND_UNIT = PORT + 1, "chimed-second"

# Connections to the server's port go to the port $to; those that go to the other one are reset.
FLIP = """
table ip flip
delete table ip flip
table ip flip {{
    chain way {{
        type nat hook output priority -100;
        ip daddr {server} tcp dport {port} dnat to {server}:{to}
    }}
    chain old {{
        type filter hook output priority 0;
        ip daddr {server} tcp dport {other} reject with tcp reset
    }}
}}
"""


# --- nodes ------------------------------------------------------------------------------------------------------------


def keep_state(host: LabHost) -> Path:
    """A copy of the agent's state directory and libvirt's definitions, as backup software makes it; gives where it
    is."""
    kept = host.dir / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(_state(host), kept / "agent")
    for definition in _definitions(host).glob("*.xml"):
        shutil.copy(definition, kept)
    return kept


def put_back_state(host: LabHost, kept: Path) -> None:
    """The copy is the state directory now. The agent must not run."""
    inside = f"{AGENT_STATE}.kept"  # what is under a mounted overlay must not be changed behind it
    shutil.copytree(kept / "agent", f"/proc/{host.leader}/root{inside}")
    host.run("sh", "-c", f"rm -rf {AGENT_STATE} && mv {inside} {AGENT_STATE}")


def put_back_disk(host: LabHost, kept: Path) -> None:
    """Of a host that is off: the copies of the state directory and of libvirt's definitions are in their places."""
    shutil.rmtree(_state(host))
    shutil.copytree(kept / "agent", _state(host))
    for definition in kept.glob("*.xml"):
        shutil.copy(definition, _definitions(host))


def _definitions(host: LabHost) -> Path:
    return host.dir / "own/etc/libvirt/qemu"


def _state(host: LabHost) -> Path:
    return host.dir / f"own{AGENT_STATE}"


def key_of(host: LabHost) -> keys.KeyFile:
    """The node's key file, as whoever is root there reads it."""
    return keys.load(_state(host) / "node.key")


def lose(lab: Lab, name: str) -> None:
    """The node loses power, and the server knows."""
    lab.host(name).power_off()
    lab.wait_nodes(name, health="unreachable")


def rebuild_elsewhere(lab: Lab, name: str, guest: str) -> Qemu:
    """The node loses power; drained by an operator's word, which is true, and rebuilt. Gives the guest's process."""
    lose(lab, name)
    word = {"evidence": "operator", "comment": "it is off"}
    lab.do(m.NodeDrain, name=name, **word)
    lab.do(m.NodeRebuild, name=name, **word)
    seen = lab.process(lab.vm(guest)["uuid"])
    assert seen.host != name
    lab.counting(guest)
    return seen


# --- the server's database --------------------------------------------------------------------------------------------


def status(server: Operator) -> dict[str, Any]:
    """What the server says of itself."""
    return dict(server.ask(m.ServerStatus()))


def wait_generation(server: Operator, generation: int) -> None:
    """Until a recovery in this generation is over."""

    def over() -> bool:
        now = status(server)
        return bool(now["generation"] == generation and not now["recovering"])

    server.wait(over, f"generation {generation} has recovered")


def back_up(lab: Lab, to: str = "/root/backup.db") -> str:
    """`chimed backup` while the server runs."""
    lab.server.run("chimed", "backup", to, "--config", CONFIG, "--overwrite")
    return to


def copy_database(lab: Lab, to: str = "/root/copy") -> str:
    """`cp` of a stopped server's database; the server is started again."""
    lab.server.systemctl("stop", "chimed")
    lab.server.run("sh", "-c", f"rm -rf {to} && mkdir {to} && cp -a {DATABASE}* {to}/")
    _start(lab)
    return to


def put_back_database(lab: Lab, kept: str) -> None:
    """`cp` of an older database into the place of the present one."""
    lab.server.systemctl("stop", "chimed")
    lab.server.run("sh", "-c", f"rm -f {DATABASE}* && cp -a {kept}/* {SERVER_STATE}/")
    _start(lab)


def restore(lab: Lab, backup: str, new_machine: bool = False) -> None:
    """`chimed restore`; on a new machine nothing but key, configuration and backup is there."""
    lab.server.systemctl("stop", "chimed")
    if new_machine:
        lab.server.run("sh", "-c", f"rm -f {DATABASE}*")
    lab.server.run("chimed", "restore", backup, "--config", CONFIG, "--yes")
    _start(lab)


def init_anew(lab: Lab) -> None:
    """The database is lost: `chimed init` makes a new one with the old key; the nodes are added with theirs."""
    server = lab.server
    server.systemctl("stop", "chimed")
    server.run("sh", "-c", f"rm -f {DATABASE}* && mv {OPERATOR_KEY} {OPERATOR_KEY}.old")
    server.run("chimed", "init", "--config", CONFIG, "--operator-key", OPERATOR_KEY)
    _take_operator_key(lab)
    _start(lab)
    for name in lab.names:
        lab.do(m.NodeAdd, name=name, public_key=key_of(lab.host(name)).public_key)


def find_again(lab: Lab, backup: str) -> None:
    """The lost database turns up again as a backup, and with it the operator's old key."""
    lab.server.run("mv", f"{OPERATOR_KEY}.old", OPERATOR_KEY)
    _take_operator_key(lab)
    restore(lab, backup)


def _take_operator_key(lab: Lab) -> None:
    lab.forget_client()
    shutil.copy(f"{lab.server.dir}/own{OPERATOR_KEY}", lab.operator_key)


def _start(lab: Lab) -> None:
    lab.server.systemctl("start", "chimed")
    lab.wait_server()


# --- a second server --------------------------------------------------------------------------------------------------


class Second(Operator):
    """Another chimed with the server's key, on another port of the server's host. To the agents it has the same
    address: whom they reach is decided by `flip`."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.watch = lab.watch
        self.operator_key = lab.dir / "second.key"
        self._config = f"{CONFIG_FOLDER}/second.toml"
        here = f"tcp://{lab.server.address()}:{SECOND_PORT}"
        values = {**lab.server_config, "state_dir": SECOND_STATE, "endpoint": here, "public_endpoint": here}
        lab.server.run("sh", "-c", f"rm -rf {SECOND_STATE} && mkdir -m 700 {SECOND_STATE}")
        lab.server.run("sh", "-c", f"cat >{self._config} <<'END'\n{toml(values)}END")
        lab.server.run("sh", "-c", f"cp {SERVER_STATE}/server.key {SECOND_STATE}/")
        text = lab.operator_key.read_text().replace(f":{PORT}", f":{SECOND_PORT}")
        with open(os.open(self.operator_key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)

    def start(self, database: str, restored: bool = False) -> None:
        """On a copy of this database, as it is or by `chimed restore`."""
        server = self.lab.server
        if restored:
            server.run("chimed", "restore", database, "--config", self._config, "--yes")
        else:
            server.run("cp", database, f"{SECOND_STATE}/chime.db")
        command = ("/opt/chime/bin/chimed", "--config", self._config)
        server.run("systemd-run", "--quiet", "--collect", f"--unit={SECOND_UNIT}", *command)
        self.wait_server()

    def becomes_the_server(self) -> None:
        """What a person does at the end: one is stopped for good, and the other is the server."""
        lab, server = self.lab, self.lab.server
        server.systemctl("stop", "chimed", SECOND_UNIT)
        server.run("sh", "-c", f"rm -f {DATABASE}* && cp {SECOND_STATE}/chime.db* {SERVER_STATE}/")
        server.systemctl("start", "chimed")
        lab.forget_client()
        lab.wait_server()
        for name in lab.names:
            flip(lab, name, PORT)

    def close(self) -> None:
        """End it."""
        self.forget_client()
        self.lab.server.systemctl("stop", SECOND_UNIT, check=False)
        for name in self.lab.names:
            self.lab.host(name).run("nft", "delete", "table", "ip", "flip", check=False)

    def processes(self) -> dict[str, list[Qemu]]:
        return self.lab.processes()

    def logs(self) -> str:
        return self.lab.server.journal(SECOND_UNIT, lines=200) + self.lab.logs()


@contextlib.contextmanager
def second_server(lab: Lab) -> Iterator[Second]:
    """A second server, which does not run yet."""
    second = Second(lab)
    try:
        yield second
    finally:
        second.close()


def flip(lab: Lab, name: str, port: int = SECOND_PORT) -> None:
    """From now on the node's agent reaches the server at this port, by the address that it has always had."""
    other = PORT + SECOND_PORT - port
    rules = FLIP.format(server=lab.server.address(), port=PORT, to=port, other=other)
    lab.host(name).run("sh", "-c", f"nft -f - <<'END'\n{rules}END")
