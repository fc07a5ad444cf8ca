"""What the server's core holds: rows and tables, sessions, who is heard, and the turn that changes them."""
