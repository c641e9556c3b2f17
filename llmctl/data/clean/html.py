"""Which documents are HTML, and the kernel that replaces them by their text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

import pyarrow as pa

from llmctl.data.clean.kernel import with_text
from llmctl.data.clean.pages import page_text

# Possessive quantifiers (*+): no text makes these patterns look twice at the same place.
PAGE = re.compile(
    r"\s*+(?:<\?xml[^>]*+>\s*+)?+(?:<!--.*?-->\s*+)*+<(?:!doctype\s++html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
STRUCTURE = re.compile(r"<(?:p|br|div|h[1-6]|ul|ol|table|body|section|article|title)\b[^<>]*+>", re.IGNORECASE)
ENDINGS = (".html", ".htm", ".xhtml", ".xhtm")
NUMBERS = ":~0123456789"  # `page.html:12`, `page.html~2`: what collect adds to an id


class HtmlToText:
    """Replaces HTML by its text: headings, paragraphs and lists on lines of their own; scripts and styles gone.

    Tables keep their rows and columns (tabs), `<pre>` its lines and indentation, mathematics its TeX where the
    page has it.

    Args:
        mode: `auto` takes a document for HTML where it starts like a page, or where its url or id ends in .html
            and it holds a structural tag (crawls often keep the url of a page beside its extracted text);
            `always` takes every document, `never` none.
        main_content: leave out menus, side bars and footers.
        convert: from HTML to text, in place of resiliparse.
    """

    def __init__(
        self,
        mode: Literal["auto", "always", "never"] = "auto",
        *,
        main_content: bool = False,
        convert: Callable[[str], str] | None = None,
    ) -> None:
        self.mode = mode
        self.convert = convert or (lambda html: page_text(html, main_content=main_content))

    def is_html(self, text: str, url: str, document_id: str) -> bool:
        """Whether the document is to be converted."""
        if self.mode != "auto":
            return self.mode == "always"
        if PAGE.match(text):
            return True
        return (names_page(url) or names_page(document_id)) and STRUCTURE.search(text) is not None

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """`batch` with HTML texts converted."""
        if self.mode == "never":
            return batch
        texts = batch.column("text").to_pylist()
        addresses = zip(batch.column("url").to_pylist(), batch.column("id").to_pylist(), strict=True)
        for row, (url, document_id) in enumerate(addresses):
            if self.is_html(texts[row], url, document_id):
                texts[row] = self.convert(texts[row])
        return with_text(batch, texts)


def names_page(address: str) -> bool:
    """Whether a URL or an id ends in .html, without its query, fragment and running number."""
    path = address.partition("?")[0].partition("#")[0]
    return path.rstrip(NUMBERS).lower().endswith(ENDINGS)
