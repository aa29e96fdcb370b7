"""What `doctor` finds: one value for each step, and nothing that looks for itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What a step has come to. A warning fails nothing today; what was skipped could not be looked at."""

    GOOD = "good"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """One step of the way that a certificate takes.

    step: one of a closed set of words. about: the name, the address or the path that was looked at; empty for the only
    one. found: what was found there; never a key, a token or a key authorization. advice: what to do next; each failure
    has some. certificate: which certificate it is about, empty for all of them.
    """

    step: str
    verdict: Verdict
    found: str
    about: str = ""
    advice: str = ""
    certificate: str = ""

    def __str__(self) -> str:
        return f"{self.about}: {self.found}" if self.about else self.found


def good(step: str, found: str, *, about: str = "") -> Diagnosis:
    """This step works."""
    return Diagnosis(step=step, verdict=Verdict.GOOD, found=found, about=about)


def warning(step: str, found: str, advice: str, *, about: str = "") -> Diagnosis:
    """It works, and something about it is not as it should be."""
    return Diagnosis(step=step, verdict=Verdict.WARNING, found=found, about=about, advice=advice)


def failed(step: str, found: str, advice: str, *, about: str = "") -> Diagnosis:
    """It does not work."""
    return Diagnosis(step=step, verdict=Verdict.FAILED, found=found, about=about, advice=advice)


def skipped(step: str, why: str, *, about: str = "") -> Diagnosis:
    """Nobody could look, or there is nothing to look at."""
    return Diagnosis(step=step, verdict=Verdict.SKIPPED, found=why, about=about)


def printable(text: str, longest: int = 300) -> str:
    """Words of somebody else's, for one line of text: cut, and with what is not printable as question marks."""
    return "".join(char if char.isprintable() else "?" for char in text[:longest])
