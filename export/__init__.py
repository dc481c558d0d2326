"""Export locations as GeoJSON, GeoTIFF, CSV, HTML and PNG."""
