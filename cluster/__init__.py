"""Encodes a map and photos over the nodes of a Ray cluster."""
