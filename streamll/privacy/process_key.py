"""The key of pseudonyms where an application does not hand one over: the environment's, else one made by chance.

What belongs here: the one place of this room with state, chance and a word to the log.
"""

from __future__ import annotations

import logging
import os

from streamll.privacy.pseudonyms import Pseudonyms

VARIABLE = "STREAMLL_PSEUDONYM_KEY"

log = logging.getLogger("streamll")

_made: dict[str, Pseudonyms] = {}


class ProcessPseudonyms(Pseudonyms):
    """The process's own: under the key in STREAMLL_PSEUDONYM_KEY, else under one made by chance when it is first needed.

    One made by chance lives as long as the process and the children it forks, which is said once: in the next process
    the same user has another pseudonym.
    """

    def __init__(self) -> None:
        pass  # the key is looked for when there is something to hash

    def of(self, text: str) -> str:
        """Return the pseudonym of a text."""
        return (_made.get("") or _make()).of(text)


def _make() -> Pseudonyms:
    given = os.environ.get(VARIABLE, "")
    made = Pseudonyms(given or os.urandom(32))
    first = _made.setdefault("", made)  # of two threads that come at once, both take the same
    if first is made and not given:
        log.warning(
            "pseudonyms are made under a key of this process alone, so that another process, or this one when it is "
            "started again, gives the same user another one; set pseudonym_key (or %s) to keep them",
            VARIABLE,
        )
    return first
