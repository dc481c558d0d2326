"""Photos as encoders take them: opened within bounds, read ahead, augmented, with what is known of their view."""
