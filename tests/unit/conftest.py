"""For the pure rules: many examples, and no deadline, since machines may be busy."""

from hypothesis import settings

settings.register_profile("unit", deadline=None, max_examples=100)
settings.load_profile("unit")
