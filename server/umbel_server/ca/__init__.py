"""The fleet's authority as a process of its own: it holds the keys, and checks for itself what it signs."""
