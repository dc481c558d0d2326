"""Commands that make data sets, publish them, and set up working directories of published ones."""
