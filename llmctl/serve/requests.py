"""Request bodies of the OpenAI API, as far as this server honours them.

Types are strict (`"0.5"` is no number), NaN and infinity are refused, and no field is dropped in silence: one that
this server cannot honour is accepted only at the value where it changes nothing, an unknown one is a 400. Fields
that are about bookkeeping at OpenAI and cannot change an answer (`user`, `metadata`, `store`, …) are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from llmctl.serve.fields import Body, Text, unicode_text
from llmctl.serve.toolmodels import Choice, Function, ToolCall, Tools

MOST_STOPS = 4
LONGEST_STOP = 256
MOST_IDS = 1024
INT64 = 2**63

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "annotations": (None, []),
    "best_of": (None, 1),
    "function_call": (None, "none"),
    "functions": (None,),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "refusal": (None,),
    "suffix": (None, ""),
    "verbosity": (None,),
    "web_search_options": (None,),
}


def _only_neutral(value: Any, info: ValidationInfo) -> Any:
    if value not in NEUTRAL[str(info.field_name)]:
        raise ValueError("is not supported by this server; leave it out")
    return value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _id_keys(value: Any) -> Any:
    """`logit_bias` with its keys, which JSON can only have as strings, as the ids that they are."""
    if not isinstance(value, dict):
        return value
    if not all(isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) <= 10 for key in value):
        raise ValueError("must have token ids for keys")
    return {int(key): bias for key, bias in value.items()}


def _content(value: Any) -> Any:
    """A message's text: a string, or OpenAI's list of `{"type": "text", "text": …}` parts."""
    if not isinstance(value, list):
        return value
    for part in value:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise ValueError(
                'must be a string or a list of {"type": "text", "text": …} parts; this model reads text only'
            )
    return "".join(part["text"] for part in value)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _prompts(value: Any) -> Any:
    """Any of the four forms of `prompt` as a list of strings or a list of lists of token ids."""
    if isinstance(value, str):
        return [unicode_text(value)]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return [unicode_text(item) for item in value]
        if all(_is_id(item) for item in value):
            return [value]
        if all(isinstance(item, list) and item and all(_is_id(token) for token in item) for item in value):
            return value
    raise ValueError(
        "must be a string, a list of strings, a list of token ids, or a list of lists of token ids; none empty"
    )


Unsupported = Annotated[Any, AfterValidator(_only_neutral)]
IdKey = Annotated[str, Field(pattern=r"^[0-9]{1,10}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Stop = Annotated[Text, Field(min_length=1, max_length=LONGEST_STOP)]
Single = str | list[str]
AnyPrompts = Single | list[int] | list[list[int]]
Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=MOST_IDS)]
Biases = Annotated[
    dict[int, Bias], BeforeValidator(_id_keys, json_schema_input_type=dict[IdKey, Bias]), Field(max_length=MOST_IDS)
]
Stops = Annotated[list[Stop], Field(max_length=MOST_STOPS), BeforeValidator(_as_list, json_schema_input_type=Single)]
Prompts = Annotated[list[str] | list[list[int]], BeforeValidator(_prompts, json_schema_input_type=AnyPrompts)]


class TextPart(Body):
    """One part of a message's content."""

    type: Literal["text"]
    text: str


Content = str | list[TextPart] | None


class StreamOptions(Body):
    """What a stream carries beside its text."""

    include_usage: bool | None = Field(None, description="send token counts in a last chunk without choices")
    include_obfuscation: bool | None = Field(None, description="ignored: no padding is ever sent")


class JsonSchema(Body):
    """OpenAI's `response_format.json_schema`."""

    name: Text | None = Field(None, description="ignored")
    description: Text | None = Field(None, description="ignored")
    strict: bool | None = Field(None, description="ignored: answers always keep to the schema")
    schema_: dict[str, Any] | bool = Field(default_factory=dict, alias="schema", description="JSON Schema")


class ResponseFormat(Body):
    """OpenAI's `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _with_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to type json_schema, and to no other")
        return self

    @property
    def schema_of_answer(self) -> dict[str, Any] | bool | None:
        """JSON Schema of the answer; None where it is any text."""
        if self.type == "text":
            return None
        return {"type": "object"} if self.json_schema is None else self.json_schema.schema_


class StructuredOutputs(Body):
    """An extension, as vLLM has it: the form of the answer, by one of four."""

    json_: dict[str, Any] | bool | str | None = Field(None, alias="json", description="JSON Schema")
    regex: Text | None = Field(None, description="regular expression that the whole answer matches")
    choice: list[Text] | None = Field(None, min_length=1, max_length=MOST_IDS, description="one of these texts")
    grammar: Text | None = Field(None, description="GBNF, or llguidance's Lark")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if sum(value is not None for value in (self.json_, self.regex, self.choice, self.grammar)) != 1:
            raise ValueError("give one of json, regex, choice and grammar")
        return self


class GenerationRequest(Body):
    """What completions and chat completions have in common."""

    model: Text = Field(description="name of the served model, as /v1/models lists it")
    stream: bool | None = Field(None, description="send server-sent events as tokens come")
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=128, description="choices per prompt; 1 where left out")
    stop: Stops | None = Field(None, description="up to four strings that end the text; they are not returned")
    seed: int | None = Field(None, ge=-INT64, lt=INT64, description="same seed and request: same answer")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy; 1 where left out")
    top_p: float | None = Field(None, gt=0, le=1, description="nucleus sampling; 1 (all) where left out")
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="an extension: most likely ids kept; 0 or -1: all")
    min_p: float | None = Field(None, ge=0, le=1, description="an extension: least probability, as a share of the best")
    typical_p: float | None = Field(None, gt=0, le=1, description="an extension: locally typical sampling")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="taken for each time a token was generated")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="taken once a token was generated")
    repetition_penalty: float | None = Field(
        None, gt=0, le=10, description="an extension: divides the logits of tokens seen in prompt or answer"
    )
    logit_bias: Biases | None = Field(None, description="added to the logits of token ids, -100 to 100")
    allowed_token_ids: Ids | None = Field(None, min_length=1, description="an extension: the only ids that may come")
    banned_token_ids: Ids | None = Field(None, description="an extension: ids that never come")
    stop_token_ids: Ids | None = Field(None, description="an extension: ids that end the text beside the model's own")
    min_tokens: int | None = Field(None, ge=0, lt=2**31, description="an extension: no end before so many tokens")
    logprobs_mode: Literal["raw", "sampled"] | None = Field(
        None, description="an extension: log-probabilities of the model (raw) or of what was drawn from"
    )
    structured_outputs: StructuredOutputs | None = Field(None, description="an extension: the form of the answer")
    ignore_eos: bool | None = Field(None, description="an extension: go on past the end token, for benchmarks")

    user: Any = Field(None, description="ignored")
    metadata: Any = Field(None, description="ignored")
    store: Any = Field(None, description="ignored")
    service_tier: Any = Field(None, description="ignored")
    safety_identifier: Any = Field(None, description="ignored")
    prompt_cache_key: Any = Field(None, description="ignored")
    prompt_cache_retention: Any = Field(None, description="ignored")

    @property
    def choices_per_prompt(self) -> int:
        """`n` with its default."""
        return 1 if self.n is None else self.n

    @property
    def wants_stream(self) -> bool:
        """`stream` with its default."""
        return bool(self.stream)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    prompt: Prompts = Field(description="text or token ids to continue; text gets the begin token in front, ids do not")
    max_tokens: int | None = Field(None, ge=0, lt=2**31, description="tokens to generate; 16 where left out")
    logprobs: int | None = Field(None, ge=0, le=100, description="alternatives to return for each token")
    echo: bool | None = Field(None, description="return the prompt in front of its continuation")
    return_token_ids: bool | None = Field(None, description="an extension: the ids of each answer, as token_ids")
    best_of: Unsupported = None
    suffix: Unsupported = None


class Message(Body):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: list[ToolCall] | None = Field(None, description="what the assistant called")
    tool_call_id: Text | None = Field(None, validate_default=True, description="of the call that a tool answers")
    content: Annotated[Text | None, BeforeValidator(_content, json_schema_input_type=Content)] = Field(
        None, validate_default=True
    )
    name: str | None = Field(None, description="ignored")
    parsed: Any = Field(None, description="ignored: what OpenAI's client made of the content")
    refusal: Unsupported = None
    function_call: Unsupported = None
    audio: Unsupported = None
    annotations: Unsupported = None

    @field_validator("tool_calls")
    @classmethod
    def _only_of_the_assistant(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.data.get("role", "assistant") != "assistant":
            raise ValueError("only the assistant calls tools")
        return value

    @field_validator("tool_call_id")
    @classmethod
    def _only_of_a_tool(cls, value: Any, info: ValidationInfo) -> Any:
        is_tool = info.data.get("role") == "tool"
        if is_tool and value is None:
            raise PydanticCustomError("missing", "is required of a tool")
        if value is not None and not is_tool:
            raise ValueError("only a message of role tool answers a call")
        return value

    @field_validator("content")
    @classmethod
    def _said(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and not info.data.get("tool_calls"):
            raise PydanticCustomError("missing", "is required")
        return value

    @property
    def size(self) -> int:
        """Bytes of what it says and calls."""
        calls = [call.function.name + call.function.arguments for call in self.tool_calls or ()]
        return len("".join((self.content or "", *calls)).encode())

    def as_turn(self) -> dict[str, Any]:
        """The message as chat templates take it; `developer` is the newer name of `system`."""
        turn: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role}
        turn["content"] = self.content or ""
        if self.tool_calls:
            turn["tool_calls"] = [call.for_template() for call in self.tool_calls]
        if self.tool_call_id is not None:
            turn["tool_call_id"] = self.tool_call_id
        return turn


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, description="the chat so far")
    max_tokens: int | None = Field(None, ge=1, lt=2**31, description="older name of max_completion_tokens")
    max_completion_tokens: int | None = Field(
        None, ge=1, lt=2**31, description="tokens to generate; up to the context's end where left out"
    )
    logprobs: bool | None = Field(None, description="return the log-probability of each token")
    top_logprobs: int | None = Field(None, ge=0, le=100, description="alternatives to return for each token")
    response_format: ResponseFormat | None = Field(None, description="text, json_object, or json_schema with a schema")
    tools: Tools | None = Field(None, description="functions that the model may call")
    tool_choice: Choice | None = Field(None, description="none, auto (where left out), required, or which one")
    parallel_tool_calls: bool | None = Field(None, description="false: one call at most; several where left out")
    functions: Unsupported = None
    function_call: Unsupported = None
    modalities: Unsupported = None
    audio: Unsupported = None
    prediction: Unsupported = None
    reasoning_effort: Unsupported = None
    verbosity: Unsupported = None
    web_search_options: Unsupported = None
    moderation: Unsupported = None


class TokenizeRequest(Body):
    """`POST /tokenize`, as vLLM has it: a text, or a chat."""

    model: Text | None = Field(None, description="name of the served model; may be left out")
    prompt: Text | None = Field(None, description="text to encode")
    add_special_tokens: bool = Field(default=True, description="put the begin token in front, as completions do")
    messages: list[Message] | None = Field(None, min_length=1, description="chat to render and encode")
    tools: Tools | None = Field(None, description="functions that the chat's model may call")
    add_generation_prompt: bool = Field(default=True, description="end the chat with the assistant's opened turn")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(Body):
    """`POST /detokenize`."""

    model: Text | None = Field(None, description="name of the served model; may be left out")
    tokens: list[int] = Field(max_length=1 << 20, description="ids to decode")


FIELDS = sorted(
    {
        name
        for body in (CompletionRequest, ChatRequest, Message, TokenizeRequest, DetokenizeRequest, Function)
        for name in body.model_fields
    }
)
