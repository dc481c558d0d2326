"""Training of refiners: off the cache, from images, and along rays."""
