"""Photos of an area from Mapillary: listing, journal, download."""
