"""`croissant.json`: the artifact in the Croissant vocabulary (MLCommons, version 1.0), for any tool that reads it."""

from __future__ import annotations

import json
from typing import Any

from llmctl.store.card import languages_of
from llmctl.store.contents import Contents, splits
from llmctl.store.manifest import Manifest

CROISSANT_FILE = "croissant.json"
CONFORMS_TO = "http://mlcommons.org/croissant/1.0"
PARQUET = "application/x-parquet"
DATA_TYPES = {
    "string": "sc:Text",
    "int32": "sc:Integer",
    "int64": "sc:Integer",
    "double": "sc:Float",
    "bool": "sc:Boolean",
}
DESCRIPTIONS = {
    "id": "Name of the document; unique within the data set.",
    "text": "The document's text.",
    "source": "Where it was collected from.",
    "url": "Its address, where it has one.",
    "license": "SPDX identifier of its licence, where it is known.",
    "lang": "Its language (ISO 639), or the programming language of a code file.",
    "time": "When the source says that it was fetched or written (ISO 8601).",
}
# The context that the specification prescribes: https://docs.mlcommons.org/croissant/docs/croissant-spec.html
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def render_croissant(manifest: Manifest, name: str, contents: Contents) -> str:
    """JSON-LD for one artifact of documents: its files with their hashes, and a record set for each split.

    Paths are relative to the artifact's directory, so the file is right wherever that lies.
    """
    described: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": name,
        "description": f"{contents.documents} documents, made by llmctl {manifest.producer.command}.",
        "conformsTo": CONFORMS_TO,
        "citeAs": f"llmctl artifact {name}, {manifest.digest}",
        "datePublished": manifest.run.finished,
        "version": f"1.0.0+{manifest.digest.removeprefix('sha256:')[:12]}",
    }
    if manifest.license:
        described["license"] = list(manifest.license)
    if languages := [code for code in languages_of(contents) if code != "code"]:
        described["inLanguage"] = languages
    described["distribution"] = [*_files(manifest), *_file_sets(manifest)]
    described["recordSet"] = [_record_set(split, contents) for split in splits(manifest)]
    return json.dumps(described, indent=2, ensure_ascii=False) + "\n"


def _files(manifest: Manifest) -> list[dict[str, Any]]:
    return [
        {
            "@type": "cr:FileObject",
            "@id": entry.path,
            "name": entry.path,
            "contentUrl": entry.path,
            "contentSize": f"{entry.bytes} B",
            "encodingFormat": PARQUET if entry.path.endswith(".parquet") else "application/octet-stream",
            "sha256": entry.sha256,
        }
        for entry in manifest.files
    ]


def _file_sets(manifest: Manifest) -> list[dict[str, Any]]:
    """The parts of each split; files that hold something else (clusters, rejected documents) are in none."""
    return [
        {
            "@type": "cr:FileSet",
            "@id": f"{split}-parts",
            "name": f"{split}-parts",
            "encodingFormat": PARQUET,
            "includes": [entry.path for entry in entries],
        }
        for split, entries in splits(manifest).items()
    ]


def _record_set(split: str, contents: Contents) -> dict[str, Any]:
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"{split}/{column}",
            "name": column,
            "description": DESCRIPTIONS.get(column, f"The column {column}."),
            "dataType": DATA_TYPES[kind],
            "source": {"fileSet": {"@id": f"{split}-parts"}, "extract": {"column": column}},
        }
        for column, kind in contents.columns
        if kind in DATA_TYPES
    ]
    return {
        "@type": "cr:RecordSet",
        "@id": split,
        "name": split,
        "description": f"The documents of the split {split}.",
        "field": fields,
    }
