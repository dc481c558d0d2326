"""An example of a package that adds an encoder family and an expert to jzi."""
