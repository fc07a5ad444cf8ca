"""The server: the authority on what should run where."""

__version__ = "0.1.0"
