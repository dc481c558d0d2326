"""Training: the decoder off the cache, the encoder with it, and retrievers."""
