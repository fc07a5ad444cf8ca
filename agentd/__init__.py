"""The agent of a compute node: guards its VMs, with the server or without it."""

__version__ = "0.1.0"
