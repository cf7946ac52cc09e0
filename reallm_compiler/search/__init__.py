"""Choices that need data: which plan for which matrix, to a target of bytes."""
