"""What can happen in a simulated world, in the words of scenarios: faults, people at a console, operators' requests."""

from __future__ import annotations

from tests.sim.cluster import Cluster
from tests.sim.commands import agents, histories, lies, machines, requests, servers, vms  # noqa: F401 they register
from tests.sim.commands.base import COMMANDS
from tests.sim.words import Usage

__all__ = ["COMMANDS", "carry_out"]


def carry_out(cluster: Cluster, text: str) -> None:
    """One command. Raises Usage when it means nothing; what is not possible at the moment does nothing."""
    do, words = COMMANDS.find(text)
    cluster.story.tell(cluster.engine.now, "world", text, *words.values())
    try:
        do(cluster, **words)
    except KeyError as unknown:
        raise Usage(f"{text!r}: there is no {unknown}") from None
