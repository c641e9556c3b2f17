"""Unicode: wrongly decoded text repaired, then one form for each character."""

from __future__ import annotations

import unicodedata

import ftfy

from llmctl.data.clean.kernel import Rewrite

# Repairs of wrong decoding only. Entities, quotes, ligatures and wide forms may be meant as they stand.
MOJIBAKE_ONLY = ftfy.TextFixerConfig(
    unescape_html=False,
    uncurl_quotes=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    fix_line_breaks=False,
    remove_control_chars=False,
    remove_terminal_escapes=False,
    normalization=None,
    explain=False,
)


class RepairEncoding(Rewrite):
    """Undoes UTF-8 that was read as Latin-1 or a Windows code page, with ftfy (`schÃ¶n` becomes `schön`)."""

    def rewrite(self, text: str) -> str:
        """The text with each line repaired by itself, as ftfy does; ASCII has nothing to repair."""
        if text.isascii():
            return text
        lines = text.split("\n")
        return "\n".join(line if line.isascii() else ftfy.fix_text(line, MOJIBAKE_ONLY) for line in lines)


class ComposeUnicode(Rewrite):
    """Normalisation form C: `e` and a combining accent become `é`. Meaning and looks are unchanged."""

    def rewrite(self, text: str) -> str:
        """The NFC text."""
        return unicodedata.normalize("NFC", text)
