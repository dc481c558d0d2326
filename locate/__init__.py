"""From experts' probabilities to one answer: posterior, fusion, location."""
