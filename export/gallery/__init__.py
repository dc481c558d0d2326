"""A report of single photos: the worst and the best answers, what a zoom decided, and what it compared."""
