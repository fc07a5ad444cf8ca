"""A process on a terminal of its own, where ^C is a signal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pexpect


def on_terminal(argv: Sequence[str], env: Mapping[str, str], size: tuple[int, int], timeout_s: float) -> pexpect.spawn:
    """Starts it. `size`: lines and columns, which those in the environment would outdo; `timeout_s`: how long something
    is waited for."""
    command, *words = argv
    env = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES")}
    return pexpect.spawn(
        command, words, env={**env, "TERM": "xterm"}, dimensions=size, timeout=timeout_s,
        encoding="utf-8", codec_errors="replace",  # ^C cuts off what was on its way
    )  # fmt: skip


def end(terminal: pexpect.spawn) -> int:
    """The exit code, when it has ended."""
    terminal.expect(pexpect.EOF)
    terminal.close()
    return int(terminal.exitstatus)
