"""Numerical routines that several codecs use: packing, k-means, assignment, seeding."""
