"""What it costs to have a prefix again: computed anew, or copied back. Learned from what was done."""

from __future__ import annotations

from collections.abc import Callable, Sequence

ASSUMED_SHARE = 0.25
"""Of what computing takes that copying is thought to take, before either is known."""
FADES = 0.9
"""What an earlier measurement counts for when another comes: a slow first one is forgotten in some tens."""
DOUBTED = 1.05
"""How much faster copying is thought to be each time that computing was preferred: else one slow copy would be the
last."""


class _Rate:
    """Units a second, the latest measurements first; a long one counts more than a short one."""

    def __init__(self) -> None:
        self._units = 0.0
        self._seconds = 0.0
        self.per_s = 0.0
        """0: not known."""

    def note(self, units: float, seconds: float) -> None:
        if seconds > 0.0:
            self._units = FADES * self._units + units
            self._seconds = FADES * self._seconds + seconds
            self.per_s = self._units / self._seconds

    def doubt(self) -> None:
        self._units *= DOUBTED
        self.per_s *= DOUBTED


class RestoreCosts:
    """Costs in the operations that a prefill takes (`operations(num_tokens)`), and copies in what could be computed
    meanwhile. Measurements are noted on the device thread; what they say may be read on any."""

    def __init__(self, operations: Callable[[int], float], bytes_per_token: float) -> None:
        self._operations = operations
        self._bytes_per_token = bytes_per_token
        self._computing = _Rate()
        self._copying = _Rate()

    def computed(self, contexts: Sequence[int], seconds: float) -> None:
        """Contexts of so many tokens were prefilled together."""
        self._computing.note(sum(map(self._operations, contexts)), seconds)

    def copied(self, num_bytes: int, seconds: float) -> None:
        """So many bytes came back from host memory."""
        self._copying.note(num_bytes, seconds)

    def preferred_computing(self) -> None:
        """A copy was there and not used."""
        self._copying.doubt()

    @property
    def bytes_per_s(self) -> float:
        """Copied from host memory; 0 if not known."""
        return self._copying.per_s

    def rebuild(self, num_tokens: int) -> float:
        """Of a prefix without a copy."""
        return self._operations(num_tokens)

    def restore(self, num_tokens: int, copied_tokens: int) -> float:
        """Of a prefix of which the first `copied_tokens` can be copied, the cheaper way."""
        whole = self._operations(num_tokens)
        if not copied_tokens:
            return whole
        return min(whole, whole - self._operations(copied_tokens) + self._copy(copied_tokens))

    def prefers_copy(self, num_tokens: int) -> bool:
        """Whether so many tokens are copied sooner than computed, whatever is to be appended to them."""
        return self._copy(num_tokens) < self._operations(num_tokens)

    def tokens_of_copy(self, num_tokens: int) -> int:
        """As many tokens as could be prefilled while these are copied."""
        return min(num_tokens, -int(-num_tokens * self._copy(num_tokens) // self._operations(num_tokens)))

    def _copy(self, num_tokens: int) -> float:
        if not (self._copying.per_s and self._computing.per_s):
            return ASSUMED_SHARE * self._operations(num_tokens)
        return num_tokens * self._bytes_per_token / self._copying.per_s * self._computing.per_s
