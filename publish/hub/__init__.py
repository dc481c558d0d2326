"""Models, caches and data sets on the Hugging Face hub."""
