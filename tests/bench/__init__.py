"""Measurements on real processes: `python -m tests.bench [--only PART ...]`, a table and `build/bench.json`.

What is judged is a ratio of two things measured in turns in one run, or an amount that the machine's speed does not
change much. Absolute times are in the details, for those who know the machine.
"""
