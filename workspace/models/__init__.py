"""Open model folders: as locators, and as experts to evaluate."""
