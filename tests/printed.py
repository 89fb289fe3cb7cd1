"""When do two printed outputs agree? Words, whole numbers and numbers inside words exactly; other numbers nearly.

A processor may round the last bits differently (chapter core.arithmetic), so 7.98 may be printed as 7.97 elsewhere. A number that is off by
1 % is another number. What depends on the processor by more than that should not be printed: say what holds instead.
"""
import math
import re

RELATIVE, ABSOLUTE = 5e-3, 1e-7
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)(?!\.?\d)(?!\w*_)")


def words(text: str) -> list[str]:
    "What stands between the numbers; how many blanks there are beside it depends on the numbers"
    return [re.sub(r"[ \t]+", " ", part).strip(" ") for part in NUMBER.split(text)]


def agree(was: str, now: str) -> bool:
    "Do two outputs say the same?"
    a, b = (list(map(float, NUMBER.findall(text))) for text in (was, now))
    return words(was) == words(now) and all(math.isclose(x, y, rel_tol=RELATIVE, abs_tol=ABSOLUTE) for x, y in zip(a, b, strict=True))


class Printed(str):
    "A text that equals another one if both say the same, for nbval's comparison"
    def __eq__(self, other: object) -> bool: return isinstance(other, str) and agree(self, other)
    def __ne__(self, other: object) -> bool: return not self == other
    __hash__ = str.__hash__
