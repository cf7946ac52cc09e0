"""The command line of reallm: the only printing, the only colour, the only exit codes."""
