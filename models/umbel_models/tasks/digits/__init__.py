"""Handwritten digits, 8x8 grey levels: the task the demo learns."""
