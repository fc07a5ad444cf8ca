"""`agentd check-host`: each check once, for the person who sets up a node or writes a check."""

from __future__ import annotations

import threading

from agentd.checks.finding import find
from agentd.checks.interface import Check, CheckStuck
from agentd.config import Config
from wire.text import clean_line

MAX_TEXT = 500


def look(config: Config) -> tuple[list[str], bool]:
    """A line for each check and for each that cannot be used, and whether all could look."""
    found = find(config)
    answers: dict[str, list[str]] = {}
    failed: set[str] = set(found.problems)

    def one(check: Check) -> None:
        try:
            symptoms = list(check.symptoms(check.read(), None, frozenset()))
        except CheckStuck as error:
            failed.add(check.name)
            answers[check.name] = [f"check-stuck: has not returned within {error.after_s:g} s"]
        except Exception as error:
            failed.add(check.name)
            answers[check.name] = [f"check-failed: {type(error).__name__}: {error}"]
        else:
            severity = {code: how.severity for code, how in check.codes.items()}
            answers[check.name] = [f"{s.code} ({s.severity or severity.get(s.code, '?')}): {s.text}" for s in symptoms]

    threads = [threading.Thread(target=one, args=(check,), daemon=True) for check in found.checks]
    for thread in threads:
        thread.start()
    lines = []
    for check, thread in zip(found.checks, threads, strict=True):
        thread.join(check.timeout_s)
        if check.name not in answers:
            failed.add(check.name)
        seen = answers.get(check.name, [f"check-stuck: has not returned within {check.timeout_s:g} s"])
        lines += [clean_line(f"{check.name}: {text}", MAX_TEXT) for text in seen or ["nothing is wrong"]]
    lines += [clean_line(f"{name}: check-failed: {why}", MAX_TEXT) for name, why in found.problems.items()]
    return lines, not failed
