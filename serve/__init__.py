"""A small web service over one model."""
