"""Working directories: jzi.toml, and the imagery, photos, caches and models that it names."""
