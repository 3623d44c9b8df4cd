"""The operators' commands, a module a group; each has a `register` that adds it to the app."""
