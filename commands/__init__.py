"""The commands, by what they are for: each parses, calls one function and prints. Heavy imports stay inside them."""
