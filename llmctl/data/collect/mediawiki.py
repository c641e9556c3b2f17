"""MediaWiki's XML dumps: one document a page, its markup reduced to text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit
from xml.parsers import expat

from llmctl.data.collect.document import Document, UnreadableError
from llmctl.data.collect.entry import Entry
from llmctl.data.collect.streams import damage
from llmctl.data.collect.wikitext import FILES, plain_text

BLOCK_BYTES = 1 << 16
LONGEST_TOKEN_BYTES = 8 << 20  # one tag with its attributes; expat holds it whole
MARKUP = 4  # times as long as a document may be; the rest is templates and references
FILE_NAMESPACES = {"-2", "6", "14"}  # media, file, category: named in the dump's own language
# Projects whose text is under CC BY-SA 4.0 by the terms of use of the Wikimedia Foundation (June 2023).
WIKIMEDIA = re.compile(
    r"(?:[a-z0-9-]+\.)*(?:wikipedia|wiktionary|wikibooks|wikiquote|wikisource|wikiversity|wikivoyage)\.org"
)
WIKIMEDIA_LICENSE = "CC-BY-SA-4.0"
DEED = re.compile(r"creativecommons\.org/licenses/(by(?:-nc)?(?:-sa|-nd)?)/(\d\.\d)")


@dataclass
class _Page:
    """What has been read of one page."""

    title: str = ""
    id: str = ""
    ns: str = "0"
    time: str = ""
    model: str = "wikitext"
    redirect: bool = False
    too_large: bool = False
    text: str = ""


@dataclass
class _Site:
    """What the dump says of the wiki."""

    base: str = ""
    license: str = ""
    file_prefixes: set[str] = field(default_factory=lambda: set(FILES))

    def url(self, title: str) -> str:
        """The page's address, or ""."""
        return self.base.rpartition("/")[0] + "/" + quote(title.replace(" ", "_"), safe="/:()',") if self.base else ""


class _Dump:
    """Expat's handlers; finished pages gather in `pages`.

    Only the path of the open elements, the page at hand and one field of it are kept.
    """

    def __init__(self, longest: int) -> None:
        self.site = _Site()
        self.pages: list[_Page] = []
        self.events = 0
        self.root = ""
        self._longest = longest
        self._path: list[str] = []
        self._page: _Page | None = None
        self._field: list[str] | None = None
        self._length = 0
        self._key = ""

    def parser(self) -> Any:
        """A parser that calls this object. A document type is refused: entities come with it."""
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self.start
        parser.EndElementHandler = self.end
        parser.CharacterDataHandler = self.characters
        parser.StartDoctypeDeclHandler = _refuse
        return parser

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """An element begins."""
        self.events += 1
        self.root = self.root or tag
        if len(self._path) < 16:  # deeper ones are no part of the format
            self._path.append(tag)
        else:
            raise UnreadableError("damaged", "elements are nested too deeply")
        if tag == "page":
            self._page = _Page()
        elif tag == "redirect" and self._page:
            self._page.redirect = True
        self._key = attributes.get("key", "")
        self._field, self._length = [], 0

    def characters(self, text: str) -> None:
        """Text of the open element."""
        self.events += 1
        if self._field is None:
            return
        self._length += len(text)
        if self._length > self._longest:
            self._field = None
            if self._page:
                self._page.too_large = True
            return
        self._field.append(text)

    def end(self, tag: str) -> None:
        """An element ends."""
        self.events += 1
        path, text = tuple(self._path[1:]), "".join(self._field or ())
        self._path.pop()
        self._field = None
        if path == ("page",) and self._page:
            self.pages.append(self._page)
            self._page = None
        elif path[:1] == ("siteinfo",):
            self._about_site(tag, text)
        elif self._page:
            self._about_page(path[1:], text)

    def _about_site(self, tag: str, text: str) -> None:
        if tag == "base":
            self.site.base = text.strip()
            host = urlsplit(self.site.base).hostname or ""
            if WIKIMEDIA.fullmatch(host) and not self.site.license:
                self.site.license = WIKIMEDIA_LICENSE
        elif tag == "namespace" and self._key in FILE_NAMESPACES and text:
            self.site.file_prefixes.add(text.strip().lower())
        if deed := DEED.search(text):
            self.site.license = f"CC-{deed[1].upper()}-{deed[2]}"

    def _about_page(self, path: tuple[str, ...], text: str) -> None:
        page = self._page
        if page is None:
            return
        if path in {("title",), ("id",), ("ns",)}:
            setattr(page, path[0], text.strip())
        elif path == ("revision", "timestamp"):
            page.time = text.strip()
        elif path == ("revision", "model"):
            page.model = text.strip()
        elif path == ("revision", "text"):
            page.text = text


def _refuse(*_: object) -> None:
    raise UnreadableError("damaged", "it declares a document type, which no dump does")


def read_mediawiki(entry: Entry) -> Iterator[Document]:
    """The pages of the wanted namespaces, the last revision of each; redirects and the rest are counted."""
    reading = entry.reading
    wanted = {str(number) for number in reading.config.wiki_namespaces}
    dump = _Dump(MARKUP * reading.config.max_document_bytes)
    for page in _pages(entry, dump):
        where = f"{entry.where}: {page.title}"
        if page.ns not in wanted:
            reading.tally.drop("namespace")
        elif page.redirect:
            reading.tally.drop("redirect")
        elif page.too_large:
            reading.tally.drop("too_large", where)
        elif page.model != "wikitext":
            reading.tally.drop("content_type", f"{where} is {page.model}")
        else:
            text = plain_text(page.text, dump.site.file_prefixes)
            yield Document(
                id=f"{entry.name}:{page.id}",
                text=f"{page.title}\n\n{text}" if text else "",
                source=reading.source,
                url=dump.site.url(page.title),
                license=dump.site.license or reading.license,
                time=page.time,
            )


def _pages(entry: Entry, dump: _Dump) -> Iterator[_Page]:
    parser = dump.parser()
    handle = entry.open()
    events = silent = 0
    while True:
        with damage(entry.where):
            block = handle.read(BLOCK_BYTES)
        try:
            parser.Parse(block, not block)
        except expat.ExpatError as error:
            yield from dump.pages
            reason = expat.ErrorString(error.code)
            raise UnreadableError(
                "damaged", f"{entry.where} line {error.lineno}: {reason}", "download it again"
            ) from error
        except UnreadableError as fault:
            yield from dump.pages
            raise UnreadableError(
                "damaged", f"{entry.where}: {fault.what}", "only MediaWiki's dumps are read"
            ) from fault
        silent = 0 if dump.events > events else silent + len(block)
        events = dump.events
        if silent > LONGEST_TOKEN_BYTES:
            raise UnreadableError("damaged", f"{entry.where} holds a tag of over {LONGEST_TOKEN_BYTES >> 20} MiB")
        if dump.root and dump.root != "mediawiki":
            what = f"{entry.where} is no MediaWiki dump: its root is <{dump.root[:40]}>"
            raise UnreadableError("damaged" if entry.strict else "unknown_xml", what, "only MediaWiki's .xml is read")
        yield from dump.pages
        dump.pages.clear()
        if not block:
            return
