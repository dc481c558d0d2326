"""Requests to services: a bounded HTTP client, and connections that can be cut."""
