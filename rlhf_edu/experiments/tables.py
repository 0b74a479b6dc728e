"""Tables as text."""

from collections.abc import Iterable, Sequence


def text_table(
    rows: Iterable[Sequence[object]], widths: Sequence[int] | None = None, left: int = 1
) -> list[str]:
    """Lines of a table: the first columns aligned on their left, all others on their right.

    Args:
        rows: of cells, each as it is printed; the first row may be the head.
        widths: of the columns, gaps included; None: as wide as the longest cell, two apart.
        left: how many columns stand on their left.
    """
    texts = [[str(cell) for cell in row] for row in rows]
    gap = "" if widths else "  "
    widths = widths or [max(map(len, column)) for column in zip(*texts, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, strict=True)
        placed = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(cells)]
        return gap.join(placed).rstrip()

    return [line(row) for row in texts]
