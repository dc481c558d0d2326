"""Networks that match photos with windows, their files, and the tokens that they make."""
