"""Training of the decoder from the cache, of the encoder together with the decoder, and of retrievers."""
