"""Tests of the node's fault checks, as far as they are pure."""
