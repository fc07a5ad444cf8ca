"""What libvirt does by itself: on the event that the domain has stopped, `create()`. Nothing of Chime's runtime.

`python -m tests.bench.bare_restart URI XML_FILE`: defines and starts the domain, then restarts it for ever.
"""

from __future__ import annotations

import queue
import sys
import threading
from pathlib import Path
from typing import Any

import libvirt


def main(uri: str, xml_file: str) -> None:
    """Until it is killed."""
    stopped: queue.SimpleQueue[int] = queue.SimpleQueue()

    def on_event(_conn: Any, _domain: Any, event: int, detail: int, _opaque: Any) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
            stopped.put(detail)

    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, daemon=True).start()
    connection = libvirt.open(uri)
    connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, on_event, None)
    domain = connection.defineXML(Path(xml_file).read_text())
    domain.create()
    while True:
        stopped.get()
        domain.create()


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


if __name__ == "__main__":
    main(*sys.argv[1:])
