"""`chime-agent`, the command for a person on the node: through the agent that runs, or without one."""
