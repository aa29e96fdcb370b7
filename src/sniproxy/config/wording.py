"""How mistakes are worded: values as the file writes them, key paths, and the word that was probably meant."""

from __future__ import annotations

import difflib
import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

# A place in the file: table keys as str, list positions as int, from the root down.
KeyPath = tuple[str | int, ...]

_LONGEST_SHOWN = 80
_MOST_LISTED = 12
# Above this, looking for a near word costs more than it helps: difflib compares with each of them.
_MOST_COMPARED = 2000

_is_bare_key = re.compile(r"[A-Za-z0-9_-]+").fullmatch


def shown(value: object) -> str:
    """A value as TOML writes it, on one line, cut short if long; a list or a table is only named as such."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = value if len(value) <= _LONGEST_SHOWN else value[:_LONGEST_SHOWN] + "…"
        # JSON's escapes are TOML's; what is invisible or would break the line is escaped, other text is left readable.
        return json.dumps(text, ensure_ascii=not text.isprintable())
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, dict):
        return "a table"
    try:
        return str(value)[:_LONGEST_SHOWN]
    except ValueError:  # Python refuses to print integers of thousands of digits
        return "a huge number"


def key_path(path: KeyPath) -> str:
    """`routes[0].sni`: table keys joined by dots, quoted where TOML would need it, list positions in brackets."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if _is_bare_key(part) else shown(part)
            text += f".{name}" if text else name
    return text


def nearest(word: str, known: Collection[str]) -> str | None:
    """The one of `known` that `word` was probably meant to be, or None."""
    return _nearest(word, tuple(known)) if len(known) <= _MOST_COMPARED else None


# The same slip tends to be in a file many times over.
@lru_cache(maxsize=256)
def _nearest(word: str, known: tuple[str, ...]) -> str | None:
    folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), folded, n=1)
    return folded[close[0]] if close else None


def listed(words: Iterable[str]) -> str:
    """`a, b or c`; above a dozen the rest is left out."""
    words = list(words)
    if len(words) > _MOST_LISTED:
        return ", ".join(words[:_MOST_LISTED]) + " …"
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} or {words[-1]}"
