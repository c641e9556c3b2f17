"""Which characters the word splitter and the rules take for letters, symbols and the ends of sentences.

The facts are spaCy 3.8's (its English tokenizer and its sentencizer) and datatrove 0.10's (the punctuation
that makes no word), restated as ranges of code points: `0041-005A` is A to Z. Sentence ends are Unicode's
property Sentence_Terminal. Symbols are Unicode's category So as this Python knows it; spaCy lists those of
an older Unicode, so it leaves emoji of 2019 and later attached to a word.
"""

# ruff: noqa: RUF001 - characters that look alike are told apart here
from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Iterable

# Scripts with upper and lower case: Latin and its extensions, Greek, Cyrillic as far as spaCy knows them.
CASED = (
    "0041-005A 0061-007A 00C0-00D6 00D8-00F6 00F8-01BF 01C4-02AF 0386 0388-038A 038C 038E-038F 0391-03A9 03AC-03AF "
    "03B1-03C9 03CC-03CE 0400-0401 0403-040A 040C-040D 0410-0451 0453-045A 045C-045D 0490-0491 0496-0497 04A2-04A3 "
    "04AE-04AF 04BA-04BB 04D8-04D9 04E8-04E9 1D00-1D25 1D6B-1D77 1D79-1D9A 1E00-1EFF 2C60-2C7B 2C7E-2C7F A722-A76F "
    "A771-A787 A78B-A78E A790-A7B9 A7FA AB30-AB5A AB60-AB64 FF21-FF3A FF41-FF5A"
)
# Scripts without case: Hebrew, Arabic, the Indic ones, Ethiopic, Korean, Japanese, Chinese.
UNCASED = (
    "0591-05F4 0620-064A 066E-06D5 06E5-06FF 0750-077F 08A0-08BD 0900-09FF 0B80-0CFF 0D80-0DFF 1100-137F 2E80-2FDF "
    "2FF0-30FF 31C0-31EF 3200-4DBF 4E00-9FFF AC00-D7AF F900-FAFF FB1D-FBB1 FBD3-FD3D FD50-FDC7 FDF0-FDFB FE30-FE4F "
    "FE70-FEFC 1EE00-1EEBB 1F200-1F2FF 20000-2A6DF 2A700-2EBEF 2F800-2FA1F"
)
SENTENCE_TERMINAL = (
    "0021 002E 003F 0589 061D-061F 06D4 0700-0702 07F9 0837 0839 083D-083E 0964-0965 104A-104B 1362 1367-1368 166E "
    "1735-1736 17D4-17D6 17D9-17DA 1803 1809 1944-1945 1AA8-1AAB 1B5A-1B5B 1B5E-1B5F 1B7D-1B7E 1C3B-1C3C 1C7E-1C7F "
    "203C-203D 2047-2049 2E2E 2E3C 2E53-2E54 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F A9C8-A9C9 "
    "AA5D-AA5F AAF0-AAF1 ABEB FE52 FE56-FE57 FF01 FF0E FF1F FF61 10A56-10A57 10F55-10F59 10F86-10F89 11047-11048 "
    "110BE-110C1 11141-11143 111C5-111C6 111CD 111DE-111DF 11238-11239 1123B-1123C 112A9 1144B-1144C 115C2-115C3 "
    "115C9-115D7 11641-11642 1173C-1173E 11944 11946 11A42-11A43 11A9B-11A9C 11C41-11C42 11EF7-11EF8 11F43-11F44 "
    "16A6E-16A6F 16AF5 16B37-16B38 16B44 16E98 1BC9F 1DA88"
)
# Sentence ends of younger scripts that spaCy's sentencizer does not know.
NO_SENTENCE_END = (
    "061D-061E 0837 0839 083D-083E 17D4-17D6 17D9-17DA 1B7D-1B7E 2E53-2E54 10F55-10F59 10F86-10F89 11944 11946 "
    "11EF7-11EF8 11F43-11F44 16E98"
)
# A word made of nothing but these, control characters and sentence ends is no word to datatrove.
NO_WORD = (
    "0000-0008 000B-001F 0021-002F 003A-0040 005B-0060 007B-009F 00AB 00B4 00BB 2013-2014 2019 201C-201E 2026 2236 "
    "2501 25BA 3001 3008-300D 3010-3011 FF05 FF08-FF09 FF0C FF11 FF1A-FF1B FF5E"
)
DIGITS = "0123456789"
QUOTES = "'\"`´«»‘’‚“”„,「」『』（）〔〕【】《》〈〉\u2329\u232a⟦⟧"
PUNCTUATION = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
CURRENCIES = "$£€¥฿₽﷼₴₠₡₢₣₤₥₦₧₨₩₪₫₭₮₯₰₱₲₳₵₶₷₸₹₺₻₼₾₿"


def characters(ranges: str) -> Iterable[str]:
    """The characters of `ranges` (hexadecimal code points, with spaces between)."""
    for piece in ranges.split():
        first, _, last = piece.partition("-")
        yield from map(chr, range(int(first, 16), int(last or first, 16) + 1))


class Ranges:
    """Whether a character lies in one of some ranges."""

    def __init__(self, ranges: str) -> None:
        pieces = [piece.partition("-") for piece in ranges.split()]
        self._firsts = sorted(int(first, 16) for first, _, _ in pieces)
        self._lasts = sorted(int(last or first, 16) for first, _, last in pieces)

    def __contains__(self, character: str) -> bool:
        code = ord(character)
        at = bisect_right(self._firsts, code) - 1
        return at >= 0 and code <= self._lasts[at]


# What a character can be to the splitter; one character can be several. Plain numbers, as an enum costs too much here.
DIGIT = 1  # 0 to 9
LOWER = 2  # a lower-case letter, or one of a script without case
UPPER = 4  # an upper-case letter, or one of a script without case
LETTER = 8  # any letter, title-case digraphs too
QUOTE = 16
MARK = 32  # comes off both ends of a word
SYMBOL = 64
CURRENCY = 128
OPENS = 256  # comes off the start of a word
STOPPABLE = 512  # a full stop comes off behind it


class Kinds(dict[str, int]):
    """The kind of each character, worked out when first asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._cased, self._uncased = Ranges(CASED), Ranges(UNCASED)

    def __missing__(self, character: str) -> int:
        kind = self._letter(character)
        if character in DIGITS:
            kind |= DIGIT
        if character in QUOTES:
            kind |= QUOTE
        if unicodedata.category(character) == "So":
            kind |= SYMBOL
        if character in CURRENCIES:
            kind |= CURRENCY
        if character in QUOTES + PUNCTUATION + "—–" or kind & SYMBOL:
            kind |= MARK
        if character in "§%=" or kind & (MARK | CURRENCY):
            kind |= OPENS
        if character in QUOTES + PUNCTUATION + "%²+-|" or kind & (DIGIT | LOWER):
            kind |= STOPPABLE
        self[character] = kind
        return kind

    def _letter(self, character: str) -> int:
        if character in self._uncased:
            return LETTER | LOWER | UPPER
        if character not in self._cased:
            return 0
        if character == "\u0294":  # was a lower-case letter in old versions of Unicode
            return LETTER | LOWER
        category = unicodedata.category(character)
        return LETTER | {"Ll": LOWER, "Lu": UPPER}.get(category, 0)


TERMINALS = frozenset(characters(SENTENCE_TERMINAL))
SENTENCE_ENDS = TERMINALS - frozenset(characters(NO_SENTENCE_END))
NO_WORD_CHARACTERS = frozenset(characters(NO_WORD)) | TERMINALS
