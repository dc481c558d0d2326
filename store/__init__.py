"""What lasts: the pyramid's geometry, the feature cache, the query table. No torch here."""
