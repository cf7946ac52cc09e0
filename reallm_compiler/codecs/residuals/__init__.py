"""What each kind of residual keeps of a matrix."""
