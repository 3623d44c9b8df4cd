"""Figures of the whole on this machine, each beside the floor that was measured in the same run."""
