"""How much memory requests hold until they are answered."""

from e5core.serve.errors import RefusedError
from e5core.serve.http import Call
from e5core.serve.limits import Limits

# The most that all requests hold, unless the bodies that are taken are larger.
MOST = 256 * 2**20
# Bodies in memory at the same time, in units of the largest one that is taken.
BODIES = 8
# Bytes of a request that is taken whatever the others hold: a query's, which nobody shuts out.
SMALL = 65_536


class Memory:
    """Counts the bytes of bodies as they come, and those of token states.

    What a body promises is not counted: whoever sends nothing would shut the others out.
    """

    def __init__(self, limits: Limits) -> None:
        self.most = max(BODIES * limits.max_body, MOST)
        self.held = 0

    def hold(self, call: Call, size: int) -> None:
        """Count bytes of a request; RefusedError (429) if there are too many of all of them."""
        call.held += size
        self.held += size
        if call.held > SMALL and self.held > self.most:
            message = (
                f"the requests that are worked on hold {self.held:,} bytes, this server takes "
                f"{self.most:,} at once; try again later, or send fewer texts a request"
            )
            raise RefusedError(429, message, code="rate_limit_exceeded", wait=1, close=True)

    def release(self, call: Call) -> None:
        """Forget a request that is answered."""
        self.held -= call.held
        call.held = 0
