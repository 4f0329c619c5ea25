"""Signed delivery: what devices may install, said so that nobody between the release manager and them can change it."""
