"""What talks to the fleet: getting in, staying in, reports, releases."""
