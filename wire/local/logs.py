"""Log set-up of the daemons: one line for each entry, on stderr; for people on a terminal, else JSON."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from wire.local.settings import LogFormat, LogLevel
from wire.text import escaped


def _escape(_log: Any, _name: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """JSON escapes by itself what is not seen, the renderer for people does not."""
    return {key: escaped(value) if isinstance(value, str) else value for key, value in entry.items()}


def set_up(level: LogLevel = "info", form: LogFormat = "auto") -> None:
    """Directs structlog (and the standard library's log of imported packages) to stderr. `auto`: console text
    when stderr is a terminal, else JSON."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer(default=str)
    if console:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        shared.append(_escape)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
