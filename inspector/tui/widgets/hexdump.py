"""Raw bytes, as words and text."""

from __future__ import annotations

from rich.text import Text

from inspector.tui import palette
from inspector.tui.widgets.drawing import Drawing, heading

_LINE = 16


class Hexdump(Drawing):
    """Bytes at an address, sixteen a line where there is room and eight where not; zeros are dim.

    Those that are lit have just changed.
    """

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._title, self._note = "", ""
        self._data = b""
        self._lit: frozenset[int] = frozenset()

    def show(self, title: str, note: str, data: bytes, lit: frozenset[int] = frozenset()) -> None:
        """Other bytes; `lit` are offsets into them."""
        self._title, self._note, self._data, self._lit = title, note, data, lit
        self.redraw()

    def draw(self, width: int) -> Text:
        """Offset, bytes, text."""
        text = Text()
        if not self._data:
            return text
        each = _LINE if width >= 6 + 3 * _LINE + 2 + _LINE else _LINE // 2
        heading(text, self._title, width, self._note)
        for start in range(0, len(self._data), each):
            part = self._data[start : start + each]
            text.append(f" {start:>4x} ", palette.DIM)
            for at, byte in enumerate(part):
                gap = " " if at % 8 == 0 else ""
                style = palette.FOREGROUND if byte else palette.FAINT
                style = f"bold {palette.BACKGROUND} on {palette.WARN}" if start + at in self._lit else style
                text.append(gap).append(f"{byte:02x}", style).append(" ")
            shown = "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in part)
            text.append(" " + "   " * (each - len(part)) + shown, palette.DIM)
            if start + each < len(self._data):
                text.append("\n")
        return text
