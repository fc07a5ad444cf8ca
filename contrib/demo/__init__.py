"""`make demo`: a cluster on this machine, its failures, and what Chime does about them."""
