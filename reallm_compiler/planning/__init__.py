"""The planner: recipe + inventory -> the exact place of every byte, without weights."""
