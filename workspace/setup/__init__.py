"""jzi.toml: its settings, how it is read, written and described, and new working directories."""
