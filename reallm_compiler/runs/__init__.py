"""Long work as a graph of tasks: where they run, what is finished, stopping and going on.

This package knows tasks only: what a task does is the business of the job that it is given.
"""
