"""Recall and precision of the PII kernel by kind, on a generated set of sentences with known truth.

    python bench/pii.py [SEED]

Half of the sentences hold one finding, in one of its usual forms; the other half holds what looks like one: versions,
dates, ISBNs, hashes, numbers that fail their check digits, part numbers, handles.
"""

from __future__ import annotations

import random
import string
import sys
from collections import Counter
from collections.abc import Callable

from llmctl.config.clean_steps import PII_KINDS, PiiConfig
from llmctl.data.clean.pii import Pii
from llmctl.data.clean.pii_patterns import IBAN_LENGTHS, luhn, mod97

PER_KIND = 400
FRAMES = (
    "Please note {} for later.",
    "{}",
    "contact: {}, thanks",
    "Use ({}) here",
    "* {}\n* next",
    'value = "{}"',
    "see {}.",
)


def digits(draw: random.Random, count: int) -> str:
    return "".join(draw.choices(string.digits, k=count))


def word(draw: random.Random, least: int = 3, most: int = 10) -> str:
    return "".join(draw.choices(string.ascii_lowercase, k=draw.randint(least, most)))


def token(draw: random.Random, count: int, letters: str = string.ascii_letters + string.digits) -> str:
    return "".join(draw.choices(letters, k=count))


def email(draw: random.Random) -> str:
    local = draw.choice(
        [word(draw), f"{word(draw)}.{word(draw)}", f"{word(draw)}+{word(draw)}", f"{word(draw)}{draw.randint(1, 99)}"]
    )
    return (
        f"{local}@{draw.choice(['', 'mail.'])}{word(draw)}.{draw.choice(['com', 'org', 'de', 'co.uk', 'io', 'museum'])}"
    )


def phone(draw: random.Random) -> str:
    a, b, c = str(draw.randint(201, 989)), str(draw.randint(200, 999)), digits(draw, 4)
    city = draw.choice(["30", "89", "211", "7071"])
    return draw.choice(
        [
            f"({a}) {b}-{c}",
            f"{a}-{b}-{c}",
            f"+1 {a} {b} {c}",
            f"+1-{a}-{b}-{c}",
            f"{a}.{b}.{c}",
            f"+49 {city} {digits(draw, 7)}",
            f"+44 20 {digits(draw, 4)} {digits(draw, 4)}",
            f"+33 1 {' '.join(digits(draw, 2) for _ in range(4))}",
            f"0049 {city} {digits(draw, 6)}",
            f"+4917{digits(draw, 9)}",
            f"+49 (0) {city} {digits(draw, 6)}",
            f"Tel.: 0{city}/{digits(draw, 6)}",
        ]
    )


def iban(draw: random.Random) -> str:
    country = draw.choice(["DE", "FR", "GB", "NL", "ES", "AT", "CH", "PL", "NO"])
    letters = {"GB": 4, "NL": 4}.get(country, 0)
    body = token(draw, letters, string.ascii_uppercase) + digits(draw, IBAN_LENGTHS[country] - 4 - letters)
    check = 98 - mod97(f"{country}00{body}")
    whole = f"{country}{check:02d}{body}"
    return draw.choice([whole, " ".join(whole[start : start + 4] for start in range(0, len(whole), 4))])


def card(draw: random.Random) -> str:
    prefix, length = draw.choice([("4", 16), ("51", 16), ("2221", 16), ("37", 15), ("6011", 16)])
    start = prefix + digits(draw, length - len(prefix) - 1)
    number = next(start + last for last in string.digits if luhn(start + last))
    if length == 15:
        return draw.choice([number, f"{number[:4]} {number[4:10]} {number[10:]}"])
    separator = draw.choice(["", " ", "-"])
    return separator.join(number[start : start + 4] for start in range(0, 16, 4))


def ssn(draw: random.Random) -> str:
    area = draw.choice([draw.randint(1, 665), draw.randint(667, 899)])
    return f"{area:03d}-{draw.randint(1, 99):02d}-{draw.randint(1, 9999):04d}"


def ip(draw: random.Random) -> str:
    first = draw.choice([8, 23, 52, 81, 104, 151])
    return draw.choice(
        [
            f"{first}.{draw.randint(0, 255)}.{draw.randint(0, 255)}.{draw.randint(1, 254)}",
            f"2a00:1450:{draw.randint(4096, 65535):x}:{draw.randint(256, 4095):x}::{draw.randint(1, 65535):x}",
        ]
    )


def key(draw: random.Random) -> str:
    upper = string.ascii_uppercase + string.digits
    return draw.choice(
        [
            "AKIA" + token(draw, 16, upper),
            "ghp_" + token(draw, 36),
            "github_pat_" + token(draw, 22) + "_" + token(draw, 59),
            f"xoxb-{digits(draw, 12)}-{digits(draw, 12)}-{token(draw, 24)}",
            "sk-" + token(draw, 48),
            "sk-proj-" + token(draw, 64),
            "AIza" + token(draw, 35),
            "hf_" + token(draw, 34),
            f"eyJ{token(draw, 20)}.eyJ{token(draw, 60)}.{token(draw, 43)}",
            f"-----BEGIN RSA PRIVATE KEY-----\n{token(draw, 64)}\n{token(draw, 64)}\n-----END RSA PRIVATE KEY-----",
        ]
    )


def lookalike(draw: random.Random) -> str:
    broken = card(draw)
    last = str((int(broken[-1]) + 1) % 10)
    return draw.choice(
        [
            f"version 1.{draw.randint(0, 30)}.{draw.randint(0, 30)}",
            f"10.0.{draw.randint(0, 255)}.{draw.randint(0, 255)}",
            "127.0.0.1",
            f"192.168.{draw.randint(0, 255)}.1",
            f"{draw.randint(1900, 2030)}-{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d}",
            f"ISBN 978-0-{digits(draw, 3)}-{digits(draw, 5)}-{digits(draw, 1)}",
            token(draw, 40, "0123456789abcdef"),
            broken[:-1] + last,
            f"{draw.randint(10, 23)}:{draw.randint(10, 59)}:{draw.randint(10, 59)}",
            f"@{word(draw)}",
            f"{word(draw)}@{word(draw)}",
            f"part {draw.choice('ABCX')}{digits(draw, 2)}-{digits(draw, 4)}",
            f"pages {digits(draw, 3)}-{digits(draw, 3)}",
            f"${draw.randint(1, 99)},{digits(draw, 3)},{digits(draw, 3)}.00",
            f"DE{digits(draw, 2)}{digits(draw, 17)}0",
            f"{digits(draw, 12)}",
            f"666-{digits(draw, 2)}-{digits(draw, 4)}",
            f"std::{word(draw)}::{word(draw)}",
            f"0x{token(draw, 8, '0123456789abcdef')}",
            f"{draw.randint(1, 99)}.{digits(draw, 6)}",
            f"sk-{word(draw)}",
            f"RFC {digits(draw, 4)}",
            f"{digits(draw, 5)}-{digits(draw, 4)}",
            f"{draw.randint(1, 9)}.{draw.randint(10, 99)}.{draw.randint(10, 99)}.{draw.randint(100, 999)}a",
        ]
    )


MAKERS: dict[str, Callable[[random.Random], str]] = {
    "key": key,
    "iban": iban,
    "card": card,
    "ssn": ssn,
    "ip": ip,
    "email": email,
    "phone": phone,
}


def measure(seed: int = 1) -> dict[str, tuple[float, float]]:
    """(recall, precision) by kind. A finding is right where kind and place overlap the truth's."""
    draw = random.Random(seed)
    kernel = Pii(PiiConfig(action="redact"))
    truth, found, right = Counter[str](), Counter[str](), Counter[str]()
    for kind in PII_KINDS:
        for _ in range(PER_KIND):
            secret = MAKERS[kind](draw)
            frame = draw.choice(FRAMES)
            before = len(frame.partition("{}")[0])
            truth[kind] += 1
            hits = kernel.find(frame.format(secret))
            found.update(hit.kind for hit in hits)
            right[kind] += any(
                hit.kind == kind and hit.start < before + len(secret) and hit.end > before for hit in hits
            )
            found.update(hit.kind for hit in kernel.find(draw.choice(FRAMES).format(lookalike(draw))))
    return {kind: (right[kind] / truth[kind], right[kind] / max(1, found[kind])) for kind in PII_KINDS}


def main() -> None:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    print(f"{PER_KIND} of each kind, as many look-alikes, seed {seed}\n\n| kind | recall | precision |\n|---|---|---|")
    for kind, (recall, precision) in measure(seed).items():
        print(f"| {kind} | {recall:.3f} | {precision:.3f} |")


if __name__ == "__main__":
    main()
