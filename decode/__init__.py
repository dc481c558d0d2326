"""Stage two: the zoom decoder, trained and run off the cache."""
