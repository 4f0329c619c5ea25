"""What a person is doing, from a phone's motion sensors: windows from a generator with the physics of gait."""
