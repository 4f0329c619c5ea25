"""What people say of predictions."""
