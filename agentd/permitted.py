"""What VMs may reach on this node: the node's own settings decide, whatever the server says.

Rules: asked before a definition is made, taken over or started, with links followed; a VM that runs is not ended. It
may block on dead storage: worker threads only.
"""

from __future__ import annotations

import os

from agentd.config import Config
from agentd.hypervisor import InvalidVm
from wire import reach
from wire.messages import VmSpec

_SETTING = {reach.Reach.EMULATOR: "emulators", reach.Reach.PATHS: "vm_paths"}


def limits_of(config: Config) -> reach.Limits:
    """The limits of a node with this configuration. Its own state is never a VM's."""
    forbidden = (*config.forbidden_paths, config.state_dir)
    return reach.Limits(config.emulators, forbidden, config.vm_paths, frozenset(config.vm_allow))


def check(xml: str, limits: reach.Limits, spec: VmSpec | None = None) -> None:
    """Raises InvalidVm for a definition that reaches further than this node allows; with `spec`, also for what Chime
    would make for it."""
    try:
        found = reach.of_xml(xml, limits, os.path.realpath)
        if spec is not None:
            found += tuple(f for f in reach.of_spec(spec, limits, os.path.realpath) if f not in found)
    except ValueError as problem:
        raise InvalidVm(str(problem)) from None
    if found:
        settings = sorted({_SETTING.get(finding.reach, "vm_allow") for finding in found})
        raise InvalidVm(f"this node does not allow it: {reach.words(found)} ({', '.join(settings)} in agentd.toml)")
