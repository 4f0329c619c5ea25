"""The device in rounds: when it takes part, what it adds, and what that costs."""
