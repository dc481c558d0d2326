"""Answers: locations with their candidates and fixes, in words, GeoJSON and pictures for notebooks."""
