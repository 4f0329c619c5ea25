"""The fleet console: what the fleet does, in a browser, and the buttons to act on it."""
