"""Tokens of a STAR line: what stands between blanks, or between quotes."""

from __future__ import annotations

import re

TOKEN = r"""(?> "[^"]*"(?!\S) | '[^']*'(?!\S) | \S+ )"""  # for verbose patterns
_TOKENS = re.compile(TOKEN, re.VERBOSE)


def is_plain(line: str) -> bool:
    """Whether the tokens of a line are what stands between its blanks: no quotes, no comment."""
    return '"' not in line and "'" not in line and "#" not in line


def split_row(line: str) -> list[str]:
    """Split a line into its tokens, quotes kept, a trailing comment dropped."""
    if is_plain(line):
        return line.split()
    tokens = _TOKENS.findall(line)
    comment = next((i for i, token in enumerate(tokens) if token.startswith("#")), len(tokens))
    return tokens[:comment]


def quote(text: str) -> str:
    """Return `text` as one STAR token, quoted if blanks, quotes or a leading # or _ ask for it."""
    if text and not re.search(r"\s", text) and text[0] not in "\"'#_":
        return text
    return f"'{text}'" if '"' in text else f'"{text}"'


def unquote(token: str) -> str:
    """Return the text a token stands for."""
    return token[1:-1] if len(token) > 1 and token[0] in "\"'" and token[-1] == token[0] else token
