"""Encoders: vision models, how they are loaded, checked and pooled, and the towers of retrieval."""
