"""Answers of a random model in the form of many JSON Schemas: each is valid, or says that it was cut.

    python bench/forms.py smol --store artifacts --schemas 500

The schemas are drawn from a seed: nested objects and arrays, enums, constants, unions, patterns, formats, bounds. The
weights are random, so nothing but the form makes an answer JSON. Ends with 1 where an answer is neither.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema

from llmctl.config.errors import UsageError
from llmctl.config.model import ModelConfig
from llmctl.inference.engine import Engine, Handle
from llmctl.inference.linears import prepare
from llmctl.inference.request import Constraint, Request
from llmctl.model.transformer import Transformer
from llmctl.store.store import Store
from llmctl.tokens.tokenizer import Tokenizer

PATTERNS = ("^[a-z]{2,5}$", r"^\d{3}-\d{4}$", "^(red|green|blue)$", "^[A-F0-9]{8}$")
FORMATS = ("date", "time", "uuid", "ipv4")
KINDS = ("string", "integer", "number", "boolean", "null", "enum", "const", "pattern", "format")


def drawn_schema(drawn: random.Random, depth: int = 0) -> dict[str, Any]:
    """One schema, at most four deep."""
    kind = drawn.choice([*KINDS, *(("object", "object", "array", "array", "anyOf") if depth < 3 else ())])
    if kind == "object" or depth == 0:
        names = drawn.sample(["id", "name", "tags", "näme", "a b", "price", "when", "nested"], drawn.randint(1, 5))
        properties = {name: drawn_schema(drawn, depth + 1) for name in names}
        required = [name for name in names if drawn.random() < 0.6]
        closed = {"additionalProperties": False} if drawn.random() < 0.8 else {}
        return {"type": "object", "properties": properties, "required": required, **closed}
    least = drawn.randint(0, 2)
    simple: dict[str, dict[str, Any]] = {
        "string": {"type": "string", "minLength": least, "maxLength": least + drawn.randint(0, 9)},
        "integer": {"type": "integer", "minimum": -least, "maximum": drawn.randint(3, 2000)},
        "number": {"type": "number"},
        "boolean": {"type": "boolean"},
        "null": {"type": "null"},
        "enum": {"enum": drawn.sample(["x", "y z", 1, 2.5, None, True, ["a"]], 3)},
        "const": {"const": drawn.choice(["fixed", 7, False])},
        "pattern": {"type": "string", "pattern": drawn.choice(PATTERNS)},
        "format": {"type": "string", "format": drawn.choice(FORMATS)},
    }
    if kind == "array":
        items = drawn_schema(drawn, depth + 1)
        return {"type": "array", "items": items, "minItems": least, "maxItems": least + drawn.randint(0, 3)}
    if kind == "anyOf":
        return {"anyOf": [drawn_schema(drawn, depth + 1) for _ in range(2)]}
    return simple[kind]


def verdict(schema: dict[str, Any], handle: Handle | None) -> str:
    """What became of one answer."""
    if handle is None:
        return "refused"
    answer = handle.result()
    if answer.finish_reason == "length":
        return "cut"
    try:
        jsonschema.validate(
            json.loads(answer.text), schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
        )
    except (ValueError, jsonschema.ValidationError) as error:
        print(f"{json.dumps(schema)}\n  {answer.text!r}\n  {str(error).splitlines()[0]}", file=sys.stderr)
        return "wrong"
    return "valid"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", help="of a checkpoint, whose tokenizer is taken")
    parser.add_argument("--store", default="artifacts")
    parser.add_argument("--schemas", type=int, default=500)
    parser.add_argument("--max-tokens", type=int, default=256)
    given = parser.parse_args()
    tokenizer = Tokenizer.open(Store.open(Path(given.store)).resolve(given.reference).data)
    model = Transformer(ModelConfig.model_validate("nano"), tokenizer.vocab_size)
    model.init_weights(0)
    schemas = [drawn_schema(random.Random(number)) for number in range(given.schemas)]
    began = time.perf_counter()
    with Engine(prepare(model, "plain"), tokenizer, max_running=32) as engine:

        def asked(number: int) -> Handle | None:
            constraint = Constraint("json_schema", json.dumps(schemas[number]))
            try:
                return engine.submit(
                    Request([1, number], max_tokens=given.max_tokens, seed=number, constraint=constraint)
                )
            except UsageError as error:
                print(error, file=sys.stderr)
                return None

        handles = [asked(number) for number in range(given.schemas)]
        found = Counter(verdict(schema, handle) for schema, handle in zip(schemas, handles, strict=True))
    print(f"{given.schemas} schemas, {time.perf_counter() - began:.0f} s: {dict(found.most_common())}")
    sys.exit(found["wrong"] > 0)


if __name__ == "__main__":
    main()
