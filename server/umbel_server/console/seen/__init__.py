"""What screens show, as values: read from the store, apart from how it looks."""
