"""Scriptable stand-ins for what the daemon talks to. They serve on loopback and believe nothing."""
