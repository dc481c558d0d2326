"""jzi.toml, and what the commands find in a working directory."""
