"""A model that an application asks."""
