"""The node's fault checks: what is wrong with the host, found at each check's own interval.

`interface` is what a check is, `judging` decides pure what is raised and cleared, `runner` runs each check in a thread
of its own, `finding` finds them by entry points (group `chime.checks`) and a site's scripts. Every other module is one
kind of check. Docs: `docs/faults-reported.md`.
"""
