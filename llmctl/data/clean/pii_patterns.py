"""Where a text holds personal data or secrets: one finder for each kind, in time linear in the text's length.

Patterns bound every repetition or start only where their run starts, so none can look at a place again and again.
What a pattern finds must pass the kind's own check (Luhn, mod 97, octets) where there is one.
"""

from __future__ import annotations

import bisect
import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Span = tuple[int, int]

EMAIL = re.compile(
    r"(?<![\w.+%-])[A-Za-z0-9_][\w.%+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,6}[A-Za-z]{2,24}(?![\w-])"
)
# +49 30 1234567, +1 (212) 555-0123, 0044 20 7946 0958 | (212) 555-0123, 212-555-0123 | Tel.: 030 / 1234567
PHONE = re.compile(
    r"(?<![\w+./-])(?<!\d[ ])(?:\+|00(?=[1-9]\d{0,2}[ /]))[1-9]\d{0,2}+(?:[ .\-/]{0,2}+\(?+\d{1,6}+\)?+){2,7}+(?![\w-])"
    r"|(?<![\w+.\-/])(?:1[ .-])?(?:\([2-9]\d{2}\)[ ]?|[2-9]\d{2}[.-])[2-9]\d{2}[ .-]\d{4}(?![\w-])"
    r"|(?<=[:. ])(?<!\d[:. ])(?P<national>0\d{1,4}[ ]?[/-]?[ ]?\d{2,8}(?:[ -]\d{2,6}){0,4}+)(?![\w-]|\.\d)"
)
PHONE_WORD = re.compile(
    r"\b(?:tel|phone|telefon|téléphone|teléfono|mobile?|cell|fax|call|handy)\b[^\w\n]{0,4}$", re.IGNORECASE
)
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ ]?[A-Z0-9]{4}){2,7}(?:[ ]?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
CARD = re.compile(r"(?<![\w.-])[2-6]\d{3}(?:[ -]?\d{2,6}){2,5}(?![\w-])")
SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}([- ])(?!00)\d{2}\1(?!0000)\d{4}(?![\w-])")
IPV4 = re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\w)")
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{1,4}(?![\w:.]\w)")
KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[0-9A-Z]{16}(?![A-Za-z0-9])"  # AWS access key
    r"|(?<![\w])gh[pousr]_[A-Za-z0-9]{36,251}(?!\w)|(?<!\w)github_pat_[A-Za-z0-9_]{22,244}(?!\w)"
    r"|(?<![\w-])glpat-[\w-]{20,64}(?![\w-])"  # GitLab
    r"|(?<![\w-])xox[abeoprs]-[A-Za-z0-9-]{10,250}(?![\w-])"  # Slack
    r"|hooks\.slack\.com/services/[A-Za-z0-9]{8,12}/[A-Za-z0-9]{8,12}/[A-Za-z0-9]{20,28}"
    r"|(?<![\w-])sk-[A-Za-z0-9_-]{20,200}(?![\w-])"  # OpenAI, Anthropic and others
    r"|(?<!\w)(?:sk|rk)_live_[A-Za-z0-9]{16,99}(?!\w)"  # Stripe
    r"|(?<!\w)AIza[\w-]{35}(?![\w-])|(?<!\w)hf_[A-Za-z0-9]{30,40}(?!\w)"  # Google, Hugging Face
    r"|(?<![\w-])eyJ[\w-]{8,4000}+\.eyJ[\w-]{8,4000}+\.[\w-]{16,1000}"  # JSON web token
    r"|(?<!\w)(?:aws_secret_access_key|AWS_SECRET_ACCESS_KEY)"
    r"[\"']?[ ]?[=:][ ]?[\"']?[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])"
)
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----")
PRIVATE_KEY_END = re.compile(r"-----END [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----")
MOST_KEY_CHARACTERS = 20_000

# Lengths from the SWIFT IBAN registry.
IBAN_LENGTHS = {
    code: length
    for length, codes in (
        (15, "NO"),
        (16, "BE"),
        (18, "DK FI FO GL NL"),
        (19, "MK SI"),
        (20, "AT BA EE KZ LT LU XK"),
        (21, "CH HR LI LV"),
        (22, "BG BH CR DE GB GE IE ME RS VA"),
        (23, "AE GI IL IQ TL"),
        (24, "AD CZ ES MD PK RO SA SE SK TN VG"),
        (25, "LY PT ST"),
        (26, "IS TR"),
        (27, "FR GR IT MC MR SM"),
        (28, "AL AZ BY CY DO GT HU LB PL SV"),
        (29, "BR EG PS QA UA"),
        (30, "JO KW MU"),
        (31, "MT SC"),
        (32, "LC"),
    )
    for code in codes.split()
}
# Leading digits and lengths (ISO/IEC 7812): American Express, Diners, Mastercard, Visa, Discover and UnionPay.
CARDS = re.compile(
    r"3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|(?:5[1-5]\d{2}|2(?:22[1-9]|2[3-9]\d|[3-6]\d{2}|7[01]\d|720))\d{12}"
    r"|4\d{12}(?:\d{3})?(?:\d{3})?|6(?:011|5\d{2}|4[4-9]\d|2\d{2})\d{12}"
)


@dataclass(frozen=True)
class Finder:
    """One kind of personal data.

    Attributes:
        kind: such as `email`.
        find: the spans in a text.
        hint: a character without which there is nothing to find; "" where every text must be read.
    """

    kind: str
    find: Callable[[str], Iterator[Span]]
    hint: str = ""


def finders(*, public_ips_only: bool = True) -> list[Finder]:
    """All kinds, those first that win where two claim the same characters."""
    return [
        Finder("key", find_keys),
        Finder("iban", find_ibans),
        Finder("card", find_cards),
        Finder("ssn", find_ssns),
        Finder("ip", lambda text: find_addresses(text, public_only=public_ips_only)),
        Finder("email", find_emails, hint="@"),
        Finder("phone", find_phones),
    ]


def find_emails(text: str) -> Iterator[Span]:
    """E-mail addresses with a domain name."""
    yield from (match.span() for match in EMAIL.finditer(text))


def find_phones(text: str) -> Iterator[Span]:
    """International numbers (+, 00), North American ones, and national ones after a word such as `Tel.`."""
    for match in PHONE.finditer(text):
        start, end = match.span()
        if match[0].endswith(")") and match[0].count("(") < match[0].count(")"):
            end -= 1
        digits = sum(map(str.isdigit, match[0]))
        if match["national"]:
            if 7 <= digits <= 13 and PHONE_WORD.search(text, max(0, match.start() - 20), match.start()):
                yield start, end
        elif 8 <= digits <= 17:
            yield start, end


def find_ibans(text: str) -> Iterator[Span]:
    """IBANs of a known country, of its length, whose check digits are right (ISO 13616: mod 97 = 1)."""
    for match in IBAN.finditer(text):
        length = IBAN_LENGTHS.get(match[0][:2])
        if length is None:
            continue
        kept, end = "", match.start()
        while len(kept) < length and end < match.end():  # a following word in capitals is not part of it
            kept += text[end].strip()
            end += 1
        if len(kept) == length and (end == len(text) or not text[end].isalnum()) and mod97(kept) == 1:
            yield match.start(), end


def mod97(iban: str) -> int:
    """The number that an IBAN's letters and digits make, modulo 97."""
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97


def find_cards(text: str) -> Iterator[Span]:
    """Card numbers of known issuers that pass the Luhn check."""
    for match in CARD.finditer(text):
        digits = match[0].replace(" ", "").replace("-", "")
        if CARDS.fullmatch(digits) and luhn(digits):
            yield match.span()


def luhn(digits: str) -> bool:
    """Whether the last digit is right (ISO/IEC 7812-1, annex B)."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def find_ssns(text: str) -> Iterator[Span]:
    """United States social security numbers, of an area, group and serial that can be given out."""
    yield from (match.span() for match in SSN.finditer(text))


def find_addresses(text: str, *, public_only: bool) -> Iterator[Span]:
    """IPv4 and IPv6 addresses."""
    for pattern in (IPV4, IPV6):
        for match in pattern.finditer(text):
            try:
                address = ipaddress.ip_address(match[0])
            except ValueError:  # 999.1.1.1, a time, a version
                continue
            if address.is_global or not public_only:
                yield match.span()


def find_keys(text: str) -> Iterator[Span]:
    """API keys and tokens by their published prefixes, and whole private key blocks."""
    yield from (match.span() for match in KEY.finditer(text))
    ends = [match.end() for match in PRIVATE_KEY_END.finditer(text)]
    done = 0
    for match in PRIVATE_KEY.finditer(text):
        if match.start() >= done:
            place = bisect.bisect_right(ends, match.end())
            near = place < len(ends) and ends[place] - match.end() <= MOST_KEY_CHARACTERS
            done = ends[place] if near else match.end()
            yield match.start(), done
