"""The three object stores, reached through fsspec: what each calls a version, a checksum and a credential.

Credentials come from the environment alone (no profile files, no machine's metadata service) and are stored nowhere.
An endpoint that the environment names is checked like any other address.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from llmctl.config.errors import InputError
from llmctl.data.collect.fetch.address import parse_url
from llmctl.data.collect.fetch.checksums import promised_by_base64, promised_by_etag
from llmctl.data.collect.fetch.downloads import Version
from llmctl.data.collect.fetch.network import Limits, Network

BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,221}")  # GCS allows 222 characters, S3 63
CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class ObjectStore(Protocol):
    """One open store."""

    @property
    def files(self) -> Any:
        """Its fsspec file system."""
        ...

    def settled(self, path: str) -> str:
        """`path`, fixed to one state of the store where it has a history."""
        ...

    def version(self, info: Mapping[str, Any]) -> Version:
        """What a listing's entry says of a file."""
        ...

    def promised(self, info: Mapping[str, Any]) -> dict[str, str]:
        """The digests that the store gives for a file."""
        ...


def _text(time: Any) -> str:
    """A listing's time as ISO 8601."""
    return time.isoformat(timespec="seconds") if isinstance(time, datetime) else str(time or "")


@dataclass(frozen=True)
class S3:
    """Amazon S3 and what speaks its protocol."""

    files: Any

    def settled(self, path: str) -> str:
        """Buckets have no state to fix; a change while reading is noticed by the ETag."""
        return path

    def version(self, info: Mapping[str, Any]) -> Version:
        """ETag, time and length."""
        return Version(str(info.get("ETag", "")), _text(info.get("LastModified")), info.get("size"))

    def promised(self, info: Mapping[str, Any]) -> dict[str, str]:
        """The ETag where it is an MD5: not for uploads in parts, nor under KMS or customer keys."""
        bucket, _, key = str(info["name"]).partition("/")
        head = self.files.call_s3("head_object", Bucket=bucket, Key=key)
        if head.get("ServerSideEncryption", "AES256") != "AES256" or head.get("SSECustomerAlgorithm"):
            return {}
        return promised_by_etag(str(info.get("ETag", "")))


@dataclass(frozen=True)
class GoogleStorage:
    """Google Cloud Storage."""

    files: Any

    def settled(self, path: str) -> str:
        """As with S3."""
        return path

    def version(self, info: Mapping[str, Any]) -> Version:
        """The generation, which every write changes, time and length."""
        return Version(
            str(info.get("generation") or info.get("etag", "")), _text(info.get("updated")), info.get("size")
        )

    def promised(self, info: Mapping[str, Any]) -> dict[str, str]:
        """The MD5 that comes with the listing (composed objects have none)."""
        return promised_by_base64(str(info.get("md5Hash", "")))


@dataclass(frozen=True)
class HuggingFace:
    """Repositories of a Hugging Face hub."""

    files: Any
    api: Any

    def settled(self, path: str) -> str:
        """The path at the commit that its branch or tag names now."""
        place = self.files.resolve_path(path)
        if not hasattr(place, "repo_id"):  # a bucket, which has no commits
            return path
        commit = self.api.repo_info(place.repo_id, revision=place.revision, repo_type=place.repo_type).sha
        kind = {"dataset": "datasets/", "space": "spaces/"}.get(place.repo_type, "")
        return f"{kind}{place.repo_id}@{commit}/{place.path_in_repo}".rstrip("/")

    def version(self, info: Mapping[str, Any]) -> Version:
        """The blob's id and its length; the listing has no cheap time."""
        return Version(str(info.get("blob_id") or info.get("xet_hash") or ""), "", info.get("size"))

    def promised(self, info: Mapping[str, Any]) -> dict[str, str]:
        """The SHA-256 of a file in large file storage."""
        large = info.get("lfs")
        return {"sha256": str(large["sha256"])} if large else {}


def open_store(scheme: str, network: Network, limits: Limits) -> ObjectStore:
    """The store that a scheme stands for, with the environment's credentials and endpoint.

    Raises:
        InputError: where its extra is not installed, or the endpoint is refused.
    """
    opened = {"s3": _open_s3, "gs": _open_gs, "hf": _open_hf}[scheme]
    extra = {"s3": "s3", "gs": "gcs", "hf": "hf"}[scheme]
    try:
        return opened(network, limits)
    except ImportError as error:
        raise InputError(
            f"{scheme}:// needs a package that is not installed ({error.name})", hint=f"pip install 'llmctl[{extra}]'"
        ) from error


def _endpoint(network: Network, *variables: str) -> str | None:
    """The first endpoint that the environment names, checked; None where it names none."""
    for variable in variables:
        if text := os.environ.get(variable, ""):
            url = parse_url(text if "://" in text else f"http://{text}")
            network.addresses(url)
            return str(url).rstrip("/")
    return None


def _open_s3(network: Network, limits: Limits) -> ObjectStore:
    import s3fs

    key, secret = os.environ.get("AWS_ACCESS_KEY_ID") or None, os.environ.get("AWS_SECRET_ACCESS_KEY") or None
    if (key is None) != (secret is None):
        raise InputError(
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY go together, and one is missing",
            hint="set both, or neither for public data",
        )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = _endpoint(network, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    files = s3fs.S3FileSystem(
        anon=key is None,
        key=key,
        secret=secret,
        token=os.environ.get("AWS_SESSION_TOKEN") or None,
        endpoint_url=endpoint,
        client_kwargs={"region_name": region} if region else {},
        cache_regions=region is None and endpoint is None,
        config_kwargs={
            "ignore_configured_endpoint_urls": True,
            "connect_timeout": min(20.0, limits.idle_s),
            "read_timeout": limits.idle_s,
        },
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    return S3(files)


def _open_gs(network: Network, limits: Limits) -> ObjectStore:
    # The package's own entry is a variant that asks each bucket's layout over gRPC first.
    from gcsfs.core import GCSFileSystem

    credentials = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    endpoint = _endpoint(network, "STORAGE_EMULATOR_HOST")
    files = GCSFileSystem(
        token="google_default" if credentials else "anon",
        access="read_only",
        endpoint_url=endpoint,
        requests_timeout=limits.idle_s,
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    return GoogleStorage(files)


def _open_hf(network: Network, _limits: Limits) -> ObjectStore:
    from huggingface_hub import HfApi, HfFileSystem

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are not the user's business
    token = os.environ.get("HF_TOKEN") or False
    endpoint = _endpoint(network, "HF_ENDPOINT")
    files = HfFileSystem(endpoint=endpoint, token=token, use_listings_cache=False, skip_instance_cache=True)
    return HuggingFace(files, HfApi(endpoint=endpoint, token=token))


def split_address(address: str) -> tuple[str, str]:
    """`s3://bucket/key` as (scheme, `bucket/key`).

    Raises:
        InputError: where the bucket's name could be read as more than a name.
    """
    scheme, _, path = address.partition("://")
    bucket = path.partition("/")[0]
    name = bucket.partition("@")[0] if scheme == "hf" else bucket
    if CONTROL.search(address) or not BUCKET.fullmatch(name):
        raise InputError(
            f"{address[:200]!r} is not fetched: {bucket[:80]!r} is no bucket's name", hint=f"{scheme}://bucket/path"
        )
    return scheme.lower(), path
