"""A router for each subject of the API."""
