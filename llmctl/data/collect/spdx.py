"""The licence of a folder of code, from the file that states it.

Rule: a file called LICENSE, LICENCE, COPYING or UNLICENSE (any case, with .md, .txt, .rst or no ending, or a
suffix such as LICENSE-MIT) at the top. An `SPDX-License-Identifier:` line decides; otherwise the words that only
this licence has, below, must stand in its first 30,000 characters, white space and letter case aside. The first
rule that fits decides for one file; several files that state different licences are joined by OR, as they are
offered (MIT and Apache-2.0). What fits no rule has no licence here: "".
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from llmctl.data.collect.text import SPDX_LINE

LICENSE_FILE = re.compile(r"(?:un)?licen[sc]e(?:[-_.][a-z0-9.-]+)?|copying(?:\.(?:txt|md|rst|lesser))?", re.IGNORECASE)
HEAD_CHARACTERS = 30_000
# In this order: the longer names first, since each text of the GPL family quotes another of it.
WORDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("AGPL-3.0-only", ("gnu affero general public license version 3",)),
    ("LGPL-3.0-only", ("gnu lesser general public license version 3",)),
    ("LGPL-2.1-only", ("gnu lesser general public license version 2.1",)),
    ("GPL-3.0-only", ("gnu general public license version 3, 29 june 2007",)),
    ("GPL-2.0-only", ("gnu general public license version 2, june 1991",)),
    ("Apache-2.0", ("apache license version 2.0, january 2004",)),
    ("MPL-2.0", ("mozilla public license version 2.0",)),
    ("EPL-2.0", ("eclipse public license - v 2.0",)),
    ("CC-BY-SA-4.0", ("attribution-sharealike 4.0 international",)),
    ("CC-BY-4.0", ("attribution 4.0 international",)),
    ("CC0-1.0", ("cc0 1.0 universal",)),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",)),
    ("BSL-1.0", ("boost software license - version 1.0",)),
    ("PSF-2.0", ("python software foundation license version 2",)),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "endorse or promote products derived from")),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms", "redistributions in binary form must")),
    ("ISC", ("permission to use, copy, modify, and/or distribute this software for any purpose",)),
    ("ISC", ("permission to use, copy, modify, and distribute this software for any purpose",)),
    ("Zlib", ("this software is provided 'as-is'", "altered source versions must be plainly marked")),
    ("MIT", ("permission is hereby granted, free of charge", "the above copyright notice and this permission notice")),
)


def is_license_file(name: str) -> bool:
    """Whether a file of this name, at the top of a repository, states its licence."""
    return LICENSE_FILE.fullmatch(name) is not None


def license_of(text: str) -> str:
    """The SPDX identifier of one licence text, or ""."""
    head = text[:HEAD_CHARACTERS]
    stated = SPDX_LINE.search(head)
    if stated:
        return stated[1]
    plain = " ".join(head.lower().replace("\u2018", "'").replace("\u2019", "'").split())
    return next((name for name, words in WORDS if all(word in plain for word in words)), "")


def joined(licenses: Iterable[str]) -> str:
    """Several licences of one work: `Apache-2.0 OR MIT`."""
    return " OR ".join(sorted({name for name in licenses if name}))


def is_allowed(expression: str, allowed: frozenset[str]) -> bool:
    """Whether an SPDX expression can be satisfied by the allowed identifiers alone (lower case).

    `A OR B` needs one of them, `A AND B` both, `A WITH E` is looked up whole, then as A. AND binds tighter than
    OR, as in SPDX; with parentheses, every identifier of the expression must be allowed.
    """
    lowered = " ".join(expression.lower().split())
    if not lowered:
        return False
    if "(" in lowered:
        names = re.split(r" (?:or|and) ", lowered.replace("(", " ").replace(")", " "))
        return all(_known(" ".join(name.split()), allowed) for name in names)
    return any(all(_known(name, allowed) for name in choice.split(" and ")) for choice in lowered.split(" or "))


def _known(name: str, allowed: frozenset[str]) -> bool:
    return name in allowed or name.partition(" with ")[0] in allowed
