r"""Answers in LaTeX, and whether two are the same by the rules of Hendrycks et al. 2021 (arXiv:2103.03874).

Equality is of texts after small differences of writing are gone (`\dfrac12` and `\frac{1}{2}`); it is what published
figures on MATH use. `verified` compares what the texts mean, through math-verify.
"""

from __future__ import annotations

import re

from llmctl.config.errors import UsageError

DROPPED = ("\n", "\\!")
RENAMED = (("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"))
NOISE = ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$")
UNIT = "\\text{ "  # begins a unit behind a number
INTEGER = re.compile(r"0|-?[1-9]\d*")


def boxed(solution: str) -> str:
    r"""What stands in the last `\boxed{…}` or `\fbox{…}` of a solution; empty where there is none."""
    if "\\boxed " in solution:
        return solution.rpartition("\\boxed ")[2].partition("$")[0]
    start = solution.rfind("\\boxed")
    start = solution.rfind("\\fbox") if start < 0 else start
    opened = solution.find("{", start) if start >= 0 else -1
    depth = 0
    for place in range(opened, len(solution)) if opened >= 0 else ():
        depth += {"{": 1, "}": -1}.get(solution[place], 0)
        if depth == 0:
            return solution[opened + 1 : place]
    return ""


def equal(answer: str, target: str) -> bool:
    """Whether two answers are written alike; where one cannot be brought into the common form, whether they are one."""
    try:
        return normal(answer) == normal(target)
    except ValueError:
        return answer == target


def normal(text: str) -> str:
    """The common form of an answer.

    Raises:
        ValueError: it has two units, or a fraction of what are no whole numbers.
    """
    for gone in DROPPED:
        text = text.replace(gone, "")
    for one, other in RENAMED:
        text = text.replace(one, other)
    for gone in NOISE:
        text = text.replace(gone, "")
    if text.count(UNIT) > 1:
        raise ValueError(text)
    text = text.partition(UNIT)[0]
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    text = "0" + text if text.startswith(".") else text
    left, _, right = text.partition("=")
    if text.count("=") == 1 and len(left) <= 2:  # `x = 3`
        text = right
    text = re.sub(r"\\sqrt(?!\{)(.)", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac(?!\{)(.)(?:(?=\{)|([^{]))", _braced, text)
    if text == "0.5":
        return "\\frac{1}{2}"
    return _fraction(text)


def _braced(match: re.Match[str]) -> str:
    above, below = match.groups()
    return f"\\frac{{{above}}}" + (f"{{{below}}}" if below is not None else "")


def _fraction(text: str) -> str:
    above, _, below = text.partition("/")
    if text.count("/") != 1:
        return text
    int(above), int(below)  # ValueError otherwise
    return f"\\frac{{{above}}}{{{below}}}" if INTEGER.fullmatch(above) and INTEGER.fullmatch(below) else text


def verified(answer: str, target: str) -> bool:
    """Whether two answers mean the same.

    Raises:
        UsageError: math-verify is not installed.
    """
    try:
        from math_verify import parse, verify
    except ImportError:
        raise UsageError(
            "the metric math_verify needs the package math-verify", hint="pip install 'llmctl[math]'"
        ) from None
    if not (wanted := parse(target)):  # a word, which math-verify would call different from itself
        return answer.strip() == target.strip()
    return bool(verify(wanted, parse(answer)))
