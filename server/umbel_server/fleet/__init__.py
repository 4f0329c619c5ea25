"""The fleet: its directory, its certificate authority, its invitations and its releases."""
