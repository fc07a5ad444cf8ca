"""Where settings come from: the command line, then the environment, then a TOML file, then the key file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from tools.options import FORMATS, Options, UsageError
from wire import toml
from wire.text import shown_value

CONFIG_FILES = ("~/.config/chime/tool.toml", "/etc/chime/tool.toml")
KEY_FILES = ("~/.config/chime/operator.key", "/etc/chime/operator.key")
KEYS = ("key", "server", "output", "timeout_s")
REQUEST_TIMEOUT_S = 10.0
MAX_FILE_BYTES = 1 << 16
MAX_TIMEOUT_S = 31_536_000


@dataclass(frozen=True, slots=True)
class Settings:
    """`server` overrides the endpoint in the key file. `request_s`: how long to wait for one answer."""

    key_file: Path
    server: str | None
    request_s: float


def resolve(options: Options, output_given: bool, environ: Mapping[str, str]) -> tuple[Options, Settings]:
    """The options with the defaults of the configuration file, and where to connect. Raises UsageError."""
    table = _read(options.config, environ)
    if not output_given and "output" in table:
        if table["output"] not in FORMATS:
            given = shown_value(table["output"])
            raise UsageError(f"configuration: output = {given}: allowed are {', '.join(FORMATS)}")
        if options.watch_s is None or table["output"] in ("table", "wide"):
            options = replace(options, output=str(table["output"]))
    if options.timeout_s is None and "timeout_s" in table:
        options = replace(options, timeout_s=_positive(table["timeout_s"]))
    key = options.key or environ.get("CHIME_KEY") or table.get("key")
    server = options.server or environ.get("CHIME_SERVER") or table.get("server")
    request_s = min(REQUEST_TIMEOUT_S, options.timeout_s or REQUEST_TIMEOUT_S)
    return options, Settings(_key_file(key, environ), str(server) if server else None, request_s)


def _read(given: str | None, environ: Mapping[str, str]) -> dict[str, object]:
    paths = [Path(given)] if given else [_expand(name, environ) for name in CONFIG_FILES]
    for path in paths:
        try:
            table = toml.parse(toml.read_text(path, MAX_FILE_BYTES))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UsageError(f"configuration {path}: {error.strerror}") from None
        except ValueError as error:
            raise UsageError(f"configuration {path} {error}") from None
        for name, value in table.items():
            if name not in KEYS:
                near = get_close_matches(name, KEYS, 1, 0.6)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(KEYS)}"
                raise UsageError(f"configuration {path}: unknown key {shown_value(name)}: {hint}")
            if name != "timeout_s" and not isinstance(value, str):
                raise UsageError(f"configuration {path}: {name} must be text")
        return table
    if given:
        raise UsageError(f"configuration {given}: no such file")
    return {}


def _key_file(given: object, environ: Mapping[str, str]) -> Path:
    if given:
        return _expand(str(given), environ)
    paths = [_expand(name, environ) for name in KEY_FILES]
    for path in paths:
        if os.path.lexists(path):
            return path
    raise UsageError(
        f"no operator key file: looked for {paths[0]} and {paths[1]}; name one with --key or $CHIME_KEY"
    )


def _expand(name: str, environ: Mapping[str, str]) -> Path:
    home = environ.get("HOME", "")
    return Path(home + name[1:]) if name.startswith("~/") and home else Path(name)


def _positive(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_TIMEOUT_S:
        raise UsageError(f"configuration: timeout_s = {shown_value(value)}: a number above 0, at most {MAX_TIMEOUT_S}")
    return float(value)
