"""The commands. Each parses options, calls one function and prints the result; heavy imports stay inside functions."""
