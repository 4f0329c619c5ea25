"""umbel's workbench: from a torch module to a signed model package."""
