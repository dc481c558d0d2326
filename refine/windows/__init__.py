"""Windows around candidates: where they lie, what is read of them, and the answers that they give."""
