"""The delay before attempt n, from a wait strategy of tenacity.

The randomness of full jitter is in the strategy, which is an argument; what is added here is only the way to ask it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenacity import RetryCallState

WaitStrategy = "Callable[[RetryCallState], float]"


def delays(wait: Callable[[RetryCallState], float]) -> Callable[[int], float]:
    """Return a function from the number of failed attempts (1, 2, ...) to the seconds to wait before the next.

    Args:
        wait: Any wait strategy of tenacity, such as `wait_random_exponential(multiplier=0.1, max=30)`, whose delay
            after n failures is drawn evenly from 0 to min(max, multiplier * 2^(n-1)).
    """
    from tenacity import RetryCallState, Retrying

    state = RetryCallState(Retrying(), None, (), {})

    def delay(failures: int) -> float:
        state.attempt_number = failures
        return max(0.0, float(wait(state)))

    return delay
