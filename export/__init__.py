"""Answers as files that other tools open: GeoJSON, GeoTIFF, CSV, HTML, PNG."""
