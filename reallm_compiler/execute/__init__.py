"""The executor: recipe to file."""
