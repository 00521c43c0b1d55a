"""The `kmi` command: a module a command, on click and rich."""
