"""White space and control characters."""

from __future__ import annotations

import re

from llmctl.data.clean.kernel import Rewrite

TERMINAL_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
LINE_END = re.compile(r"\r\n|[\r\v\f\x85\u2028\u2029]")
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]")
BLANK_LINES = re.compile(r"\n{4,}")


class NormalizeWhitespace(Rewrite):
    r"""Lines end in `\n`, without trailing blanks; at most two blank lines in a row; no control characters.

    Terminal colours and byte-order marks go too. Indentation and blanks within a line stay: in code they
    have a meaning. Blank lines at both ends go. Applying it twice changes nothing more.
    """

    def rewrite(self, text: str) -> str:
        """The normalised text, without a line end after the last line."""
        text = TERMINAL_ESCAPE.sub("", text)
        text = CONTROL.sub("", LINE_END.sub("\n", text))
        text = "\n".join(map(str.rstrip, text.split("\n")))
        return BLANK_LINES.sub("\n\n\n", text).strip("\n")
