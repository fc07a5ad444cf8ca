"""Clients of the wire protocol for operators."""
