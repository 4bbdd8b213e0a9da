"""Parsing of STAR text into a `StarDocument`, line by line, nothing lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

from cryoforum_plugin.errors import ParticleFileError
from relion_external.star import StarDocument, Table
from relion_external.tokens import is_plain, split_row


def read_star(path: Path) -> StarDocument:
    """Read a STAR file losslessly.

    Raises ParticleFileError if the file is missing, empty, not STAR, or has duplicate columns, rows with
    a wrong number of values, or rows after an empty line (where RELION ends a table).
    """
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
        if b"\0" in start or start.startswith((b"\x93NUMPY", b"\x95CSDAT")):
            raise ParticleFileError(f"{path}: not a STAR file but binary data; check the file and its suffix")
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as text:
            return _parse(text, path)
    except OSError as error:
        raise ParticleFileError(f"cannot read {path}: {error.strerror or error}") from error


def parse_star(text: str, source: Path) -> StarDocument:
    """Parse STAR text; `source` is the file named in messages. Raises as `read_star`."""
    return _parse(StringIO(text, newline="\n"), source)


def _parse(lines: Iterable[str], source: Path) -> StarDocument:
    """Parse lines that end in a line feed, only the last may do without."""
    parser, line = _Parser(source), "\n"
    for line in lines:
        parser.take(line.removesuffix("\n"))
    if line.endswith("\n"):
        parser.take("")  # what stands behind the last line feed is a line too
    parser.close()
    if not any(table.labels for table in parser.tables):
        if not parser.tables and not any(line.strip() for line in parser.preamble):
            raise ParticleFileError(f"{source}: the file is empty; was the job that wrote it cut short?")
        raise ParticleFileError(
            f"{source}: not a STAR file with a table (no data_ block with columns); check the file"
        )
    return StarDocument(source, tuple(parser.preamble), tuple(parser.tables))


@dataclass
class _Parser:
    """State of one pass: the lines of the open table, where `stage` says what may come next."""

    source: Path
    preamble: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    number: int = 0
    name: str | None = None  # of the open data_ block
    stage: str = "outside"  # then "block", "labels", "rows", "pairs" or "after"
    head: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)
    remarks: dict[int, tuple[str, ...]] = field(default_factory=dict)
    first_row: int = 0

    def fail(self, what: str, advice: str) -> ParticleFileError:
        return ParticleFileError(f"{self.source}: line {self.number}: {what}; {advice}")

    def take(self, line: str) -> None:
        """Take the next line."""
        self.number += 1
        if self.stage == "rows" and is_plain(line) and len(line.split()) == len(self.labels) > 1:
            self.rows.append(line)  # most lines of a large table; with one column it may be a keyword
            return
        word = line.strip(" \t\r\f\v\ufeff")
        if not word or word[0] == "#":
            self._take_blank(line, comment=bool(word))
        elif word.startswith("data_") and self._starts_block(word):
            self.close()
            self.name = word.split()[0][5:]
            self.stage, self.head = "block", [line]
        elif self.name is None:
            raise self.fail(f"not a STAR file: {word[:40]!r} before any data_ block", "check the file")
        elif word.startswith("loop_") and self._opens_loop(word):
            self._open_loop(line)
        elif word[0] == "_" and self.stage in ("block", "labels", "pairs", "after"):
            self._take_label(line)
        else:
            self._take_row(line)

    def _starts_block(self, word: str) -> bool:
        """Tell a block's name from a row whose first value begins with data_."""
        return self.stage not in ("labels", "rows") or len(self.labels) < 2 or len(split_row(word)) == 1

    def _opens_loop(self, word: str) -> bool:
        return self.stage != "labels" and split_row(word) == ["loop_"]

    def _take_blank(self, line: str, comment: bool) -> None:
        if self.stage == "outside":
            self.preamble.append(line)
        elif self.stage in ("block", "labels"):
            self.head.append(line)
        elif self.stage == "rows" and comment:
            self.remarks[len(self.rows)] = (*self.remarks.get(len(self.rows), ()), line)
        elif self.stage == "pairs":
            self.tail.append(line)
        else:
            self.tail.append(line)
            self.stage = "after"

    def _open_loop(self, line: str) -> None:
        """Begin a loop; a second one in the same data_ block becomes a table of the same name."""
        if self.stage in ("rows", "pairs", "after"):
            self.close()
            self.head = []
        self.head.append(line)
        self.stage = "labels"

    def _take_label(self, line: str) -> None:
        tokens = split_row(line)
        if self.stage == "labels":
            self.head.append(line)
        elif self.stage == "after":
            raise self.fail(f"{tokens[0]} stands after the end of a table", "put each table in its own block")
        elif len(tokens) != 2:
            raise self.fail(f"{tokens[0]} has {len(tokens) - 1} values where 1 is needed", "repair the line")
        else:
            self.head += [*self.tail, line]
            self.tail, self.stage = [], "pairs"
            self.rows.append(tokens[1])
        label = tokens[0][1:]
        if label in self.labels:
            raise self.fail(f"duplicate column _{label} in data_{self.name}", "remove one of the two")
        self.labels.append(label)

    def _take_row(self, line: str) -> None:
        if not self.labels:
            raise self.fail(f"values without column labels in data_{self.name}", "is this a STAR file?")
        if self.stage in ("after", "pairs"):
            raise self.fail(
                f"values after an empty line in data_{self.name}, where RELION ends a table",
                "remove the empty line, or these rows",
            )
        found = len(split_row(line))
        if found != len(self.labels):
            raise self.fail(
                f"row {len(self.rows) + 1} of data_{self.name}: {found} values, {len(self.labels)} columns",
                "repair or remove the row (text with blanks must be quoted)",
            )
        if self.stage == "labels":
            self.stage, self.first_row = "rows", self.number
        self.rows.append(line)

    def close(self) -> None:
        """Finish the open table, if any."""
        if self.name is None:
            return
        loop = self.stage != "pairs"
        rows = self.rows if loop else [" ".join(self.rows)] if self.rows else []
        self.tail = [*self.remarks.pop(len(self.rows), ()), *self.tail] if loop else self.tail
        self.tables.append(
            Table(
                self.source, self.name, tuple(self.labels), tuple(self.head), tuple(rows), tuple(self.tail),
                loop and bool(self.labels), self.first_row, self.remarks,
            )
        )  # fmt: skip
        self.head, self.labels, self.rows, self.tail, self.remarks = [], [], [], [], {}
        self.first_row = 0
