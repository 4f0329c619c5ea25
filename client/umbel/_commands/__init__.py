"""The commands of ``umbel`` but those that need no module of their own, in ``cli``."""
