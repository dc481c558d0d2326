"""Training of encoders from images: fine-tuning and flat retrieval."""
