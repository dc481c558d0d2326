"""The points of a posterior with the most probability around them."""
