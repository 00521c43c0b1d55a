"""Pictures as SVG."""

from __future__ import annotations

import re


def plain(svg: str) -> str:
    """The picture without fonts from the network, and with its spaces kept by every viewer."""
    svg = re.sub(r"@font-face\s*\{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    return svg.replace("<text ", '<text xml:space="preserve" ')
