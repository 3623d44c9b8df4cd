"""Every error answers whether to try again, and a bad setting names its key."""

import pytest

from oncepaid.domain import errors
from oncepaid.domain.errors import BadSetting, OncepaidError, Permanent, Retryable

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type)]


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind is not OncepaidError])
def test_every_error_is_either_retryable_or_permanent(kind: type) -> None:
    assert issubclass(kind, OncepaidError)
    assert issubclass(kind, Retryable) != issubclass(kind, Permanent)


def test_a_bad_setting_names_its_key() -> None:
    error = BadSetting("chain.token", "is missing")
    assert str(error) == "chain.token: is missing"
    assert (error.key, error.problem) == ("chain.token", "is missing")
