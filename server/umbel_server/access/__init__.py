"""Who may do what: people and programs, their roles, and the record of what they did."""
