"""What is known of a position before the photo is seen."""
