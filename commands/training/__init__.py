"""Commands that train, and that compare what was trained."""
