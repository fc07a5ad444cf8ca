"""The agent's decisions. Pure: no I/O, clock, randomness or thread in here."""
