"""Imagery: rasters, what is cut from them, and what reading them costs."""
