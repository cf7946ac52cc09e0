"""Where other programs take models from: exported folders and files, and servers.

Each module brings its library when it is used, never when this package is imported.
"""
