"""A stage that finds the place and the heading of a photo within the windows around its candidates (UnifyGeo)."""
