"""The planner: recipe + inventory -> the exact layout of the file, without weights."""
