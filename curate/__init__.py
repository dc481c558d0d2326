"""From found photos to a data set: filters, undistortion, panoramas, splits, and the folder that holds the result."""
