"""The web service of one model."""
