"""What a device says of its predictions: counted, sealed, and kept until it has arrived."""
