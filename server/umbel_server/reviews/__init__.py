"""Reviews that devices announced, answered by people of the fleet."""
