"""How `pytest --nbval notebooks` compares stored outputs with fresh ones.

Words, whole numbers and the order of everything must be the same. Decimal
numbers may differ by one unit of their last written digit, or by 1 %: training
in 32 bits is not the same to the last digit on every processor. HTML and SVG
are not compared, as the same words stand in the plain text. A cell that was
never run fails: nbval alone would let it pass.
"""

import re

from nbval.plugin import IPyNbCell

DECIMAL = re.compile(r"(?<![\w.])[-+]?\d+\.\d+(?:e[-+]?\d+)?(?![\w.]*\d)")
RELATIVE = 0.01


def _near(a: str, b: str) -> bool:
    """Whether two decimals agree, as far as they are written out."""
    if "e" in a or "e" in b:
        unit = 1e-9
    else:
        unit = 10.0 ** -min(len(a.split(".")[1]), len(b.split(".")[1]))
    x, y = float(a), float(b)
    return abs(x - y) <= max(1.001 * unit, RELATIVE * max(abs(x), abs(y)))


def same(stored: str, fresh: str) -> bool:
    """Whether two outputs say the same, with decimals near each other."""

    def words(text: str) -> str:
        # A sign or a digit more moves columns: spaces do not count.
        marked = DECIMAL.sub(" <number>", text)
        return re.sub(r"[ \t]+", " ", marked)

    if words(stored) != words(fresh):
        return False
    pairs = zip(DECIMAL.findall(stored), DECIMAL.findall(fresh), strict=True)
    return all(_near(a, b) for a, b in pairs)


class Output(str):
    """Text of an output, which equals another if the two say the same."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and same(str(self), str(other))

    def __ne__(self, other: object) -> bool:
        return not self == other


class Cell(IPyNbCell):
    """A cell compared with tolerance, which must have been run before."""

    def sanitize(self, s):
        return Output(s) if isinstance(s, str) else s

    def setup(self):
        super().setup()
        if self.cell.execution_count is None:
            command = "python -m rlhf_edu notebooks execute"
            self.raise_cell_error(f"never run: {command}")


def pytest_itemcollected(item):
    if isinstance(item, IPyNbCell):
        item.__class__ = Cell  # ours differs in methods only
        item.parent.skip_compare += ("text/html", "image/svg+xml")
