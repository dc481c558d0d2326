"""Training on data sets of pairs of photos and aerial images."""
