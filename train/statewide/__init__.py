"""Training of state-wide retrieval."""
