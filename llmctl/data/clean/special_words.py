"""Words that are split in a way of their own, or not at all: contractions, abbreviations, times, smileys.

The facts are those of spaCy 3.8's English tokenizer (its exceptions), told here by how they are built.
"""

# ruff: noqa: RUF001 - characters that look alike are told apart here
from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

Split = tuple[str, ...]

# (words, endings that are taken off them); every pair also without the apostrophes, and capitalised.
CONTRACTIONS = (
    ("i you he she it we they", "'ll 'll|'ve 'd 'd|'ve"),
    ("i you we they", "'ve"),
    ("i", "'m 'm|a"),
    ("you we they", "'re"),
    ("he she it", "'s"),
    ("who what when where why how there", "'s 'll 'll|'ve 're 've 'd 'd|'ve"),
    ("that this", "'s 'll 'll|'ve 'd 'd|'ve"),
    ("these those", "'ll 'll|'ve 're 've 'd 'd|'ve"),
    ("ca could do does did had may might must need ought sha should wo would", "n't n't|'ve"),
    ("could might must should would", "'ve"),
    ("ai are is was were have has dare", "n't"),
    ("not", "'ve"),
)
# What the rule above would also split, though it is a word.
WHOLE_WORDS = frozenset(["ill", "its", "hell", "shell", "shed", "were", "well", "whore"])
# The bar marks the place of the split; capitalised too.
IN_PARTS = "can|not gon|na got|ta let|'s c'm|on how|'d|'y"
IN_PARTS_AS_WRITTEN = "y'|all y|all"

ABBREVIATIONS = (
    # months, then the states of the USA
    "Jan. Feb. Mar. Apr. Jun. Jul. Aug. Sep. Sept. Oct. Nov. Dec. "
    "Ak. Ala. Ariz. Ark. Calif. Colo. Conn. D.C. Del. Fla. Ga. Ia. Id. Ill. Ind. Kan. Kans. Ky. La. Mass. Md. Mich. "
    "Minn. Miss. Mo. Mont. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Okla. Ore. Pa. S.C. Tenn. Va. Wash. Wis. "
    # titles, firms, everyday ones
    "Adm. Dr. Gen. Gov. Jr. Messrs. Mr. Mrs. Ms. Ph.D. Prof. Rep. Rev. Sen. St. Mt. Bros. co. Co. Corp. Inc. Ltd. "
    "a.m. p.m. e.g. E.g. E.G. i.e. I.e. I.E. vs. v.s. and/or w/o C++"
)
CLIPPED = (
    "'s 'S ‘s ‘S 're 'd 'Cause 'cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz 'bout 'em 'll 'nuff ma'am Ma'am o'clock O'clock "
    "lovin' Lovin' havin' Havin' doin' Doin' goin' Goin' nothin' Nothin' nuthin' Nuthin' ol' Ol' somethin' Somethin'"
)
MARKS = "' '' — \\t \\n \\\") <space>"

MOUTHS = ") )) ))) ( (( ((( ] } / | P p O o 0 * 3 > X x D"  # after eyes `:`, with and without the nose `-`
SMILEYS = (
    ":1 :o) :() (: (-: (o: [: [-: ): )-: :') :'-) :'( :'-( >:( >:o ;) ;-) (; (-; ;D "
    ";-D =) (= =] [= ]= =[ =( =/ =| =3 =D 8) 8-) (-8 8D 8-D xD XD xDD XDD <3 <33 <333 </3 "
    "^_^ ^__^ ^___^ >.< >.> <.< ._. ;_; -_- -__- (^_^) (-_-) (._.) (>_<) (*_*) (¬_¬) @_@ "
    "v.v V.V v_v V_V o_o o_O O_o O_O 0_o o_0 0_0 o.o o.O O.o O.O 0.0 o.0 0.o "
    "ಠ_ಠ ಠ︵ಠ (ಠ_ಠ) ¯\\(ツ)/¯ (╯°□°）╯︵┻━┻ ><(((*>"
)


@cache
def special_words() -> dict[str, Split]:
    """Each special word and the words that it is split into (itself alone, if it is to stay whole)."""
    table = {"".join(parts): parts for parts in _contractions()}
    for parts in _marked(IN_PARTS):
        for variant in (parts, _capitalised(parts)):
            table["".join(variant)] = variant
    table |= {"".join(parts): parts for parts in _marked(IN_PARTS_AS_WRITTEN)}
    for hour in range(1, 13):
        table |= {f"{hour}{half}": (str(hour), half) for half in ("am", "a.m.", "pm", "p.m.")}
    table |= {f"°{scale}.": ("°", scale, ".") for scale in "cfkCFK"}
    for word in _whole():
        table[word] = (word,)
    curled = {word.replace("'", "’"): tuple(part.replace("'", "’") for part in parts) for word, parts in table.items()}
    return table | curled


def _contractions() -> Iterator[Split]:
    for words, endings in CONTRACTIONS:
        for word in words.split():
            for ending in _marked(endings):
                for parts in ((word, *ending), (word, *(part.replace("'", "") for part in ending))):
                    if "".join(parts) not in WHOLE_WORDS:
                        yield from (parts, _capitalised(parts))


def _whole() -> Iterable[str]:
    yield from f"{ABBREVIATIONS} {CLIPPED} {MARKS} {SMILEYS}".split()
    yield from (f"{eyes}{mouth}" for eyes in (":", ":-") for mouth in MOUTHS.split())
    yield from (f"{letter}." for letter in "abcdefghijklmnopqrstuvwxyzäöü")


def _marked(text: str) -> list[Split]:
    return [tuple(word.split("|")) for word in text.split()]


def _capitalised(parts: Split) -> Split:
    return (parts[0].capitalize(), *parts[1:])
