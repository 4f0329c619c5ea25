"""The services of a fleet as processes: all of them under one, or each alone."""
