"""Photos and imagery of an area, from services and recordings: Mapillary, videos, OpenSfM, map services, STAC."""
