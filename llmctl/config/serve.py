"""How a checkpoint is served: where it listens, who may ask, and how much one request may cost."""

from __future__ import annotations

import ipaddress
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from llmctl.config.base import Config
from llmctl.config.devices import Device, Precision, Weights

ToolFormat = Literal["auto", "hermes", "llama3"]


class ServeConfig(Config):
    """`llmctl serve`. Nothing here changes the model; bounds exist so that no client can starve the others."""

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; loopback unless you say otherwise")
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 takes a free one and says which")
    model_name: str = Field(
        "", max_length=200, description="name that clients ask for; the checkpoint's name where left empty"
    )
    api_key_env: str = Field(
        "",
        pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$",
        description="environment variable that holds the key every route but /health and /ready asks for; empty: none",
    )
    api_key_file: str = Field("", description="file of keys, one a line: a name and the key's SHA-256; empty: none")
    requests_per_minute: int | None = Field(
        None, ge=1, description="requests that one client may make; a client is a key, or an address where none is set"
    )
    tokens_per_minute: int | None = Field(
        None, ge=1, description="tokens of prompts and answers that one client may use"
    )
    tls_cert: str = Field("", description="file of the certificate chain, PEM; with tls_key the server speaks https")
    tls_key: str = Field("", description="file of the certificate's private key, PEM")
    engine: Literal["llmctl", "vllm"] = Field("llmctl", description="what generates: our own engine, or vLLM beside us")
    vllm_python: str = Field("", description="interpreter of an environment that has vLLM; left empty: this one")
    device: Device = Field("auto", description="where the model runs; auto takes an accelerator where there is one")
    precision: Precision = Field("fp32", description="number format of the weights and the KV cache")
    weights: Weights = Field(
        "plain", description="int8, int4: round the weights as they are opened; llmctl eval tells what that loses"
    )
    cache_bits: Literal[8] | None = Field(
        None, description="8: keep keys and values in 8 bits, a quarter of fp32's memory; left out: in the precision"
    )
    max_running: int = Field(16, ge=1, le=4096, description="sequences generated at the same time")
    cache_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens of the KV cache, all sequences together; left out: an eighth of memory at most",
    )
    step_tokens: int = Field(
        512, ge=16, le=1 << 20, description="tokens of one step; smaller keeps streams smoother beside long prompts"
    )
    prefix_cache: bool = Field(default=True, description="use what is still in the cache for prompts that begin alike")
    draft_tokens: int = Field(
        0, ge=0, le=64, description="tokens guessed ahead in one step and checked at once; changes speed, not answers"
    )
    draft_model: str = Field(
        "", description="checkpoint directory of a small model that guesses; left empty: from what was said before"
    )
    max_waiting: int = Field(64, ge=0, le=65536, description="sequences that may queue; beyond them clients get 429")
    max_n: int = Field(16, ge=1, le=128, description="most choices (n) that one request may ask for")
    max_tokens: int | None = Field(
        None, ge=1, description="most tokens generated for one choice; the model's context where left out"
    )
    max_request_tokens: int | None = Field(
        None, ge=1, description="most tokens that one request may cost: for all choices, prompt and max_tokens together"
    )
    tool_format: ToolFormat = Field(
        "auto", description="how the model writes calls of functions; auto: as its chat template does, else as Hermes"
    )
    max_logprobs: int = Field(20, ge=0, le=100, description="most alternatives returned for one token")
    max_body_bytes: int = Field(4 << 20, ge=1024, le=1 << 30, description="largest request body in bytes; else 413")
    body_timeout_s: float = Field(30.0, gt=0, le=3600, description="seconds a client may take to send its body")
    header_timeout_s: float = Field(10.0, gt=0, le=3600, description="seconds a client may take to send its headers")
    log_format: Literal["text", "json"] = Field("text", description="one line a request, for people or for programs")
    log_prompts: bool = Field(default=False, description="put prompts and answers into the log too; json only")
    retry_after_s: int = Field(1, ge=1, le=3600, description="seconds that a 429 or 503 tells its client to wait")
    shutdown_s: float = Field(
        20.0, ge=0, le=3600, description="seconds that running requests get to finish after SIGTERM or SIGINT"
    )

    @field_validator("host")
    @classmethod
    def _address_or_name(cls, host: str) -> str:
        if any(character.isspace() or character in "/@" for character in host):
            raise ValueError("must be an address or a host name, such as 127.0.0.1 or localhost")
        return host

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls_cert and tls_key belong together: give both or neither")
        if self.draft_model and not self.draft_tokens:
            raise ValueError("draft_model has nothing to do with draft_tokens=0; set draft_tokens=4, for instance")
        if self.vllm_python and self.engine != "vllm":
            raise ValueError("vllm_python belongs to engine=vllm")
        if self.log_prompts and self.log_format != "json":
            raise ValueError("log_prompts needs log_format=json, because a prompt may hold line ends")
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only programs of this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
