"""The rules that work, agents and operators share: what is known, who owns what and may be moved, what is an alarm."""
