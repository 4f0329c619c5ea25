"""The command line far from the fleet's directory: sign in to the service, and do the same by its REST API."""
