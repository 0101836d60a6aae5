"""The footnotes of a table or figure, and the superscript letters that mark them."""

from __future__ import annotations

from affsup_cli.runs.index import RunData

LETTERS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ"


class Footnotes:
    """Assigns one mark to each different text, in the order of first use."""

    def __init__(self) -> None:
        self._marks: dict[str, str] = {}

    def mark(self, text: str) -> str:
        """Return the superscript letters that mark `text`."""
        if text not in self._marks:
            rest, mark = len(self._marks), ""
            while rest >= 0:
                rest, letter = divmod(rest, len(LETTERS))
                mark, rest = LETTERS[letter] + mark, rest - 1
            self._marks[text] = mark
        return self._marks[text]

    def mark_departures(self, departures: tuple[str, ...], data: RunData | None = None) -> str:
        """Return the marks of runs that depart from their recipes or use unofficial data, each after a space."""
        texts = ["; ".join(departures)] if departures else []
        if data and data.official is False:
            texts.append(f"the checksum of the {data.name} archive is not the official one")
        return "".join(f" {self.mark(text)}" for text in texts)

    def lines(self) -> tuple[str, ...]:
        """Return the footnotes, each after its mark."""
        return tuple(f"{mark} {text}" for text, mark in self._marks.items())
