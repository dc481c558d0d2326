"""Which candidates are compared with which, and what follows from the answers."""
