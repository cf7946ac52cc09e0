"""What each kind of transform does to a matrix, and back."""
