"""The screens, a module each: its routes, and beside them the functions that fetch what it shows."""
