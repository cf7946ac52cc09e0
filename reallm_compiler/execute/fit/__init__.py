"""Blocks of the model that learn while they are coded (`fit: block`)."""
