"""A made-up package that adds a quantizer to reallm: `docs/extending.md` shows its files."""
