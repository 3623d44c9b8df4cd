"""Ready-made changes to what the node answers, for `FakeNode.twist`."""

from typing import Any

from tests.fakes.node import NodeError, Twist
from tests.fakes.refusals import Refusal


def answers(value: Any) -> Twist:
    """Answer with this value."""
    return lambda _, __: value


def refuses(refusal: Refusal) -> Twist:
    """Answer with an error."""

    def refuse(_: object, __: object) -> Any:
        raise NodeError(refusal)

    return refuse


def changed_logs(**changes: Any) -> Twist:
    """Change fields of every log; None takes one out."""

    def change(_: object, logs: Any) -> Any:
        changed = [{**log, **changes} for log in logs]
        return [{k: v for k, v in log.items() if v is not None} for log in changed]

    return change
