"""Who answers questions: models, endpoints and scripts, with their prompts and replies."""
