"""Text from outside, made fit for PostgreSQL and for UTF-8 requests."""


def storable_text(text: str) -> str:
    """Return `text` with NUL and unpaired surrogates, which neither can hold, as U+FFFD and `?`."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
