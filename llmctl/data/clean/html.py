"""HTML to text, by resiliparse."""

from __future__ import annotations

import re
from typing import Literal

import pyarrow as pa
from resiliparse.extract.html2text import extract_plain_text

from llmctl.data.clean.kernel import with_text

PAGE = re.compile(
    r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
ADDRESS = re.compile(r"\.x?html?(?:[?#].*)?(?::\d+|~\d+)*$", re.IGNORECASE)
STRUCTURE = re.compile(r"<(?:p|br|div|h[1-6]|ul|ol|table|body|section|article|title)\b[^>]*>", re.IGNORECASE)


class HtmlToText:
    """Replaces HTML by its text: headings, paragraphs and lists on lines of their own; scripts and styles gone.

    Args:
        mode: `auto` takes a document for HTML where it starts like a page, or where its url or id ends in .html
            and it holds a structural tag (crawls often keep the url of a page beside its extracted text);
            `always` takes every document, `never` none.
        main_content: leave out menus, side bars and footers.
    """

    def __init__(self, mode: Literal["auto", "always", "never"] = "auto", *, main_content: bool = False) -> None:
        self.mode = mode
        self.main_content = main_content

    def is_html(self, text: str, url: str, document_id: str) -> bool:
        """Whether the document is to be converted."""
        if self.mode != "auto":
            return self.mode == "always"
        if PAGE.match(text):
            return True
        named = ADDRESS.search(url) or ADDRESS.search(document_id)
        return bool(named and STRUCTURE.search(text))

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """`batch` with HTML texts converted."""
        if self.mode == "never":
            return batch
        texts = batch.column("text").to_pylist()
        addresses = zip(batch.column("url").to_pylist(), batch.column("id").to_pylist(), strict=True)
        for row, (url, document_id) in enumerate(addresses):
            if self.is_html(texts[row], url, document_id):
                texts[row] = extract_plain_text(texts[row], main_content=self.main_content, alt_texts=False)
        return with_text(batch, texts)
