"""A table that can be written as Markdown, CSV and JSON. Knows nothing about what is in it."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows by column name.

    Attributes:
        name: a short name, of files and JSON keys.
        title: one line above the table.
        digits: of floats, by column, in Markdown; CSV and JSON hold all of them.
    """

    name: str
    title: str
    rows: Sequence[Mapping[str, Cell]]
    digits: Mapping[str, int]

    @property
    def columns(self) -> list[str]:
        """Every column that some row has, in the order met."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def markdown(self) -> str:
        """Title and table; "-" where there is no value."""
        lines = [f"## {self.title}", "", _line(self.columns), "|" + "---|" * len(self.columns)]
        for row in self.rows:
            lines.append(_line([self._text(name, row.get(name)) for name in self.columns]))
        return "\n".join([*lines, ""])

    def csv(self) -> str:
        """A header and the rows; nothing where there is no value."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def _text(self, name: str, value: Cell) -> str:
        if value is None:
            return "-"
        if isinstance(value, float):
            return f"{value:.{self.digits.get(name, 2)}f}"
        return str(value).replace("|", "\\|")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
