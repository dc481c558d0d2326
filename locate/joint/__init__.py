"""Several experts, photos or areas as one posterior."""
