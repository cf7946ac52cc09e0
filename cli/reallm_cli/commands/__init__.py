"""One file for each command; what brings torch is imported inside the command that needs it."""
