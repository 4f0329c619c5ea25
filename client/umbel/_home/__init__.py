"""What makes a directory of this machine a device of a fleet: keys, settings, and files that a crash leaves whole."""
