"""What can go wrong, sorted by the one question a loop has: is it worth trying again?"""


class OncepaidError(Exception):
    """Base of every error that this project raises on purpose."""


class Retryable(OncepaidError):
    """The same call may succeed later: a node, a database or a network is away, slow or behind."""


class Permanent(OncepaidError):
    """The same call will fail again until somebody changes something."""


class BadSetting(Permanent):
    """A setting cannot be used. `str()` is one line for the operator that names the key."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem


class NodeUnavailable(Retryable):
    """The node did not answer, refused for a passing reason, or answered something unreadable."""


class CallFailed(NodeUnavailable):
    """The node answered this one call with an error; other calls may do."""


class RateLimited(NodeUnavailable):
    """The node wants fewer requests. `retry_after_s` is the pause that it asked for, if it did."""

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class WrongChain(NodeUnavailable):
    """The node serves another chain than ours, or one without our token. `key` is the setting."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem


class RangeRefused(Retryable):
    """The node will not serve so much at once: `eth_getLogs` over fewer blocks may do.

    Of a single receipt it says that this one is too large.
    """


class BatchRefused(Retryable):
    """The node will not serve so many calls in one JSON-RPC batch; send fewer."""


class InconsistentNode(Retryable):
    """Two answers of the node cannot both be true; its backends may stand at different heads."""


class NodeBehind(Retryable):
    """The node does not have a block yet that another one told of; it will soon."""


class CursorGone(Retryable):
    """The block the cursor stands on is no longer on the node's chain: it was reorganised."""


class ChainConflict(Permanent):
    """The node's chain contradicts what was final. Nothing is credited until an operator acts."""


class NotLeading(Retryable):
    """Another daemon reads the chain now; what this one wanted to write was refused."""


class DatabaseRefused(Permanent):
    """PostgreSQL answers and will not let us in: a wrong password, database or permission."""


class DatabaseUnavailable(Retryable):
    """PostgreSQL is away, restarting, too slow, or aborted this transaction."""


class NoFreeAmount(Permanent):
    """Every unique amount near the price is reserved for another job; some are freed in time."""
