"""Checksums: what the bytes have, and what the server or the user promised."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from email.message import Message
from pathlib import Path

from llmctl.config.errors import InputError
from llmctl.store.files import HASH_BLOCK_BYTES

FRAGMENT = re.compile(r"sha256=([0-9a-fA-F]{64})")
PLAIN_MD5 = re.compile(r'"?([0-9a-f]{32})"?')


class Digests:
    """SHA-256 and MD5 of bytes that come one block after another. MD5 is only compared with what servers promise."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)

    def update(self, block: bytes) -> None:
        """The next bytes."""
        self._sha256.update(block)
        self._md5.update(block)

    def update_from(self, path: Path) -> None:
        """The bytes of a file."""
        with open(path, "rb") as handle:
            while block := handle.read(HASH_BLOCK_BYTES):
                self.update(block)

    def found(self) -> dict[str, str]:
        """Hex digests by `sha256` and `md5`."""
        return {"sha256": self._sha256.hexdigest(), "md5": self._md5.hexdigest()}


def wanted_sha256(fragment: str) -> str:
    """The digest that a user gave as `#sha256=…`, or "" for any other fragment.

    Raises:
        InputError: where it is not 64 hexadecimal digits.
    """
    if not fragment.startswith("sha256="):
        return ""
    given = FRAGMENT.fullmatch(fragment)
    if given is None:
        raise InputError(f"#{fragment[:90]} is no SHA-256", hint="it has 64 hexadecimal digits")
    return given[1].lower()


def promised_by_headers(headers: Message, *, whole: bool) -> dict[str, str]:
    """The MD5 of the whole file as a server's headers give it.

    Content-MD5 is that of the bytes sent, so it counts only where these are the `whole` file. Google's hash is that
    of the stored bytes, which it may unpack on the way. An ETag is an MD5 only from S3, and there neither for uploads
    in parts (`…-2`) nor under KMS or customer keys.
    """
    if headers.get("x-goog-stored-content-encoding", "identity") == "identity":
        for value in ",".join(headers.get_all("x-goog-hash", [])).split(","):
            name, _, encoded = value.strip().partition("=")
            if name == "md5":
                return promised_by_base64(encoded)
    if whole and "Content-MD5" in headers:
        return promised_by_base64(headers["Content-MD5"])
    keyed = headers.get("x-amz-server-side-encryption", "AES256") != "AES256"
    keyed = keyed or "x-amz-server-side-encryption-customer-algorithm" in headers
    return promised_by_etag(headers.get("ETag", "")) if "x-amz-request-id" in headers and not keyed else {}


def promised_by_etag(etag: str) -> dict[str, str]:
    """The MD5 that an ETag of S3 is where it is one."""
    plain = PLAIN_MD5.fullmatch(etag)
    return {"md5": plain[1]} if plain else {}


def promised_by_base64(encoded: str) -> dict[str, str]:
    """The MD5 that base64 text holds; {} where it holds none."""
    try:
        digest = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return {}
    return {"md5": digest.hex()} if len(digest) == 16 else {}


def compare(found: Mapping[str, str], promised: Mapping[str, str], where: str) -> None:
    """Check digests against promised ones of the same kind.

    Raises:
        InputError: for the first that differs.
    """
    for kind, value in promised.items():
        if found[kind] != value:
            raise InputError(
                f"{where} is damaged or another file: its {kind} is {found[kind]}, not {value}",
                hint="nothing of it is kept; check the URL and the digest, then try again",
            )
