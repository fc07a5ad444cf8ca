"""The command line: from arguments to a command and its checked options.

docopt reads the line, but a tool that stops VMs must not guess: abbreviated, misspelled, repeated and
unknown options are refused here first, with the nearest one named, because docopt would correct some of
them silently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import NamedTuple

from docopt import DocoptExit, docopt

from tools import help
from tools.options import FORMATS, Args, Options, UsageError
from tools.session import Session
from tools.units import seconds


class Command(NamedTuple):
    """`run` returns the exit code. `watch`: it only shows something, so it can be shown again and again."""

    run: Callable[[Session, Args], int]
    text: str
    watch: bool = False

    @property
    def summary(self) -> str:
        """The first line of the help text."""
        return self.text.split("\n", 1)[0]


Table = Mapping[str, Mapping[str, Command]]
"""Noun -> verb -> command. A noun that is a command itself has the verb ''."""


class Help(NamedTuple):
    """The user asked for help, or for the version: print it, exit code 0."""

    text: str


class Line(NamedTuple):
    """A command line that can be run. `output_given`: the format was chosen on the line."""

    command: Command
    args: Args
    options: Options
    output_given: bool


class _Scan(NamedTuple):
    positionals: list[str]
    options: list[str]
    argv: list[str]


def parse(argv: list[str], table: Table) -> Line | Help:
    """Read a command line. Raises UsageError."""
    for arg in argv:
        if not arg.isascii() and not _encodable(arg):
            raise UsageError(f"argument {arg!a} is not valid UTF-8")
    scan = _scan(argv, _all_options(table))
    if "--version" in scan.options:
        return Help("version")
    noun, verb, rest = _command_words(scan, table)
    if noun is None:
        return Help(top_text(table))
    if verb is None:
        return Help(noun_text(noun, table[noun]))
    command = table[noun][verb]
    name = f"{noun} {verb}".strip()
    if _wants_help(scan):
        return Help(command.text + help.FOOTER)
    _check_options(name, scan, command)
    _check_positionals(name, rest, command)
    args = _docopt(name, scan.argv, scan.options, command)
    return Line(command, args, global_options(args, command), "-o" in scan.options)


def global_options(args: Args, command: Command) -> Options:
    """The global options among the arguments. Raises UsageError."""
    output = args["-o"]
    if output not in FORMATS:
        raise UsageError(f"-o {output}: allowed are {', '.join(FORMATS)}")
    watch_s = seconds("--watch", args["--watch"]) if args["--watch"] is not None else None
    if watch_s is not None and not command.watch:
        raise UsageError("--watch is for commands that show something: follow an operation with op wait")
    if watch_s is not None and output in ("json", "yaml"):
        raise UsageError(f"--watch with -o {output}: {output} is one document; use -o table or wide")
    if watch_s is not None and watch_s < 0.1:
        raise UsageError(f"--watch={args['--watch']}: at least 0.1 seconds")
    if args["--wait"] and args["--no-wait"]:
        raise UsageError("--wait and --no-wait exclude each other")
    timeout_s = seconds("--timeout", args["--timeout"]) if args["--timeout"] is not None else None
    if timeout_s is not None and timeout_s <= 0:
        raise UsageError(f"--timeout {args['--timeout']}: more than 0 seconds")
    return Options(
        output,
        watch_s,
        args["--dry-run"],
        args["--yes"],
        not args["--no-wait"],
        timeout_s,
        args["--server"],
        args["--key"],
        args["--config"],
    )


def nearest(word: str, words: Iterable[str]) -> str:
    """', did you mean X?' or nothing."""
    close = get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f", did you mean {close[0]}?" if close else ""


def top_text(table: Table) -> str:
    """The help of the whole tool."""
    rows = []
    for noun, commands in table.items():
        verbs = "|".join(commands) if "" not in commands else ""
        rows.append(f"  {noun:<10} {verbs}".rstrip())
    return help.TOP.format(commands="\n".join(rows), options=help.GLOBAL)


def noun_text(noun: str, commands: Mapping[str, Command]) -> str:
    """The help of one noun: a line per command."""
    rows = [f"  {verb:<9}{command.summary}" for verb, command in commands.items()]
    return (
        f"Usage: chime-tool {noun} COMMAND ...\n\n"
        + "\n".join(rows)
        + f"\n\nMore: chime-tool {noun} {next(iter(commands))} --help\n"
    )


def options_of(text: str) -> dict[str, bool]:
    """The options that a help text describes -> whether they take a value."""
    found: dict[str, bool] = {}
    for line in text.splitlines():
        match = re.match(r"  (-\w)?(?:, )?(--[a-z-]+)?(?:[= ][A-Z]+)?(?:  |$)", line)
        if match and (match[1] or match[2]):
            takes_value = bool(re.match(r"  [^ ]+(?:, [^ ]+)?[= ][A-Z]+|  [^ ]+=[A-Z]", line))
            found.update({name: takes_value for name in (match[1], match[2]) if name})
    return found


def _all_options(table: Table) -> dict[str, bool]:
    known = options_of(help.GLOBAL) | {"--version": False}
    for commands in table.values():
        for command in commands.values():
            known |= options_of(command.text)
    return known


def _scan(argv: list[str], known: Mapping[str, bool]) -> _Scan:
    """Tell words from options. `--watch` alone gets its value, so that docopt sees one form."""
    positionals: list[str] = []
    options: list[str] = []
    normal: list[str] = []
    left = iter(argv)
    for arg in left:
        normal.append("--watch=2" if arg == "--watch" else arg)
        if arg == "--":
            rest = list(left)
            return _Scan(positionals + rest, options, normal + rest)
        if not arg.startswith("-") or arg == "-":
            positionals.append(arg)
            continue
        name, equals, _ = arg.partition("=")
        if not arg.startswith("--") and len(arg) > 2 and known.get(arg[:2]):
            name, equals = arg[:2], "="
        options.append(name)
        if known.get(name) and not equals and name != "--watch":
            value = next(left, None)
            if value is None:
                raise UsageError(f"{name} needs a value")
            normal.append(value)
        if equals and known.get(name) is False:
            raise UsageError(f"{name} takes no value")
    return _Scan(positionals, options, normal)


def _command_words(scan: _Scan, table: Table) -> tuple[str | None, str | None, list[str]]:
    """Noun, verb and the arguments after them. No noun or no verb: help on it is wanted."""
    words = scan.positionals
    if not words:
        if _wants_help(scan):
            return None, None, []
        raise UsageError(f"a command is needed: {', '.join(table)}; see chime-tool --help")
    noun = words[0]
    if noun not in table:
        raise UsageError(f"unknown command {noun!r}{nearest(noun, table)}; see chime-tool --help")
    verbs = table[noun]
    if "" in verbs:
        return noun, "", words[1:]
    if len(words) == 1:
        if _wants_help(scan):
            return noun, None, []
        raise UsageError(f"{noun} needs a command: {', '.join(verbs)}; see chime-tool {noun} --help")
    if words[1] not in verbs:
        raise UsageError(
            f"unknown command {f'{noun} {words[1]}'!r}{nearest(words[1], verbs)}; "
            f"see chime-tool {noun} --help"
        )
    return noun, words[1], words[2:]


def _wants_help(scan: _Scan) -> bool:
    return "-h" in scan.options or "--help" in scan.options


def _check_options(name: str, scan: _Scan, command: Command) -> None:
    known = options_of(command.text) | options_of(help.GLOBAL)
    for option in scan.options:
        if option not in known:
            hint = (
                "; the format is -o FORMAT" if option in ("--output", "--format") else nearest(option, known)
            )
            raise UsageError(f"unknown option {option} for {name}{hint}; see chime-tool {name} --help")
        if scan.options.count(option) > 1 and not re.search(rf"\[{option}=[A-Z]+\]\.\.\.", command.text):
            raise UsageError(f"{option} is given twice")


def _check_positionals(name: str, given: list[str], command: Command) -> None:
    wanted = positionals_of(command.text)
    if len(given) < len(wanted):
        raise UsageError(f"{name} needs {' '.join(wanted)}; see chime-tool {name} --help")
    if len(given) > len(wanted) and not _takes_more(command.text):
        raise UsageError(
            f"unexpected argument {given[len(wanted)]!r} for {name}; see chime-tool {name} --help"
        )


def _takes_more(text: str) -> bool:
    """Whether the first usage line ends in any number of arguments."""
    return re.search(r"\[[A-Z]+\]\.\.\.", text.split("Usage:", 1)[1].split("\n", 1)[0]) is not None


def positionals_of(text: str) -> list[str]:
    """The arguments in capitals on the first usage line."""
    line = text.split("Usage:", 1)[1].split("\n", 1)[0]
    return [word for word in line.split() if word.isalpha() and word.isupper()]


def _docopt(name: str, argv: list[str], given: list[str], command: Command) -> Args:
    try:
        return dict(docopt(_grammar(command.text), argv, default_help=False))
    except DocoptExit as error:
        asked = re.match(r"(-\S+) requires argument", str(error))
        if asked:
            raise UsageError(f"{asked[1]} needs a value") from None
        raise UsageError(_misfit(name, given, command)) from None


def _misfit(name: str, given: list[str], command: Command) -> str:
    """Which required options are missing, or else the usage."""
    usages = re.findall(r"chime-tool .*", command.text.split("\n\n")[1])
    required = [[word for word in usage.split() if word.startswith("--")] for usage in usages]
    missing = [[word for word in words if word.split("=")[0] not in given] for words in required]
    if all(missing):
        return (
            f"{name} needs {', or '.join(' '.join(words) for words in missing)}; see chime-tool {name} --help"
        )
    return f"{name}: these arguments do not go together; usage: {' or: '.join(usages)}"


def _grammar(text: str) -> str:
    """The text with the global options in the section that docopt reads."""
    return text + help.GLOBAL


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
