"""Stage one: imagery and photos to embeddings in the cache."""
