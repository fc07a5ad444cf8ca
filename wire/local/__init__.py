"""What Chime's processes share and no peer has to agree on: how they are configured, supervised, logged and called.

Rules: nothing here is seen by another process of Chime, so nothing here is protocol; no module of the protocol
imports it, nor does a core.
"""
