"""The description of the server's API (OpenAPI 3.1), served at /openapi.json and held true by the tests.

Built from small pieces: what every answer carries, what every path can refuse, and one function per group of paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from embedsmith import __version__
from embedsmith.server.bodies import LARGEST
from embedsmith.server.control import LONGEST_TAG, MOST_TAGS
from embedsmith.server.dashboard import FOUND
from embedsmith.server.embeddings import MOST_DIMENSIONS, MOST_TEXTS
from embedsmith.server.trail import REQUEST_ID_FORM

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
WHOLE: Json = {"type": "integer", "minimum": 0}
NUMBER: Json = {"type": "number"}
YES: Json = {"type": "boolean"}
ANY: Json = {}
METHODS = ("get", "post", "put", "patch", "delete", "options", "head")
REQUEST_ID = f"^{REQUEST_ID_FORM}$"

REFUSED = {
    400: "Not JSON, not an object, or a field with a wrong value.",
    401: "The admin token is missing or wrong.",
    409: "There is a verdict already, or no such sample.",
    503: "The store failed, or the verdict could not be written.",
    408: "The body did not come to its end in time.",
    413: "The body is larger than the server takes.",
    415: "The body says that it is something else than JSON.",
    429: "Too many texts wait for the encoder.",
    500: "The server failed; its log says why under the request's id.",
    501: "A websocket was asked for; none is passed on.",
    502: "The upstream cannot be reached, or broke off its answer.",
    504: "The upstream did not answer in time, or only-if-cached was asked for and the answer is not in the cache.",
}
CACHE_HEADERS: Json = {
    "X-Embedsmith-Cache": {
        "description": "Whether the answer is a stored one; pass: the request is none for the cache.",
        "schema": {"enum": ["hit", "miss", "pass"]},
    },
    "X-Embedsmith-Reason": {"description": "Why.", "schema": TEXT},
    "X-Embedsmith-Similarity": {
        "description": "Cosine between the question and the nearest stored one; absent where there is none.",
        "schema": {"type": "string", "pattern": r"^-?[01]\.[0-9]{4}$"},
    },
    "X-Embedsmith-Probability": {
        "description": "That one answer serves both questions, as the calibration learnt it; absent without one, "
        "for the same text, and where the guard said no.",
        "schema": {"type": "string", "pattern": r"^[01]\.[0-9]{3}$"},
    },
    "X-Embedsmith-Narrowed": {
        "description": "Names of the request's headers whose values must be equal for a stored answer to serve, "
        "besides those that say who asks; absent where there are none.",
        "schema": TEXT,
    },
    "X-Embedsmith-Entry": {"description": "Id of the entry that was served.", "schema": TEXT},
    "X-Embedsmith-Age": {
        "description": "Seconds since the entry was stored.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
}
WISH = r"(no-store|no-cache|only-if-cached|ttl=[1-9][0-9]{0,6}|namespace=[A-Za-z0-9_-]{1,40}|tag=[A-Za-z0-9_-]{1,40})"
ASKED_PARAMETER: Json = {
    "name": "X-Embedsmith-Cache",
    "in": "header",
    "description": "Wishes, commas between: no-store, no-cache, only-if-cached, ttl=SECONDS, one namespace=NAME, and "
    f"up to {MOST_TAGS} times tag=NAME (at most {LONGEST_TAG} characters of printable ASCII): /admin/purge removes by "
    "tag what such a request has stored.",
    "schema": {"type": "string", "pattern": rf"^{WISH}(,{WISH}){{0,3}}$"},
}
ID_PARAMETER: Json = {
    "name": "X-Request-Id",
    "in": "header",
    "description": "Comes back in the answer, goes to the upstream and into the log. What is not of the form "
    f"{REQUEST_ID} is replaced.",
    "schema": TEXT,
}


def describe_api(*, served_model: str = "embedsmith", largest: int = LARGEST) -> Json:
    """Return the description of the API as plain JSON.

    Args:
        served_model: the name under which /v1/embeddings answers. largest: bytes of a request that is read.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "embedsmith",
            "version": __version__,
            "description": (
                "A caching proxy in front of an OpenAI-compatible upstream, an embeddings endpoint and a dashboard. "
                f"A request that the server reads (chat, embeddings) has at most {largest} bytes. All else below /v1 "
                "goes to the upstream as it is, whatever its size."
            ),
        },
        "paths": _own_paths() | _admin_paths() | _openai_paths(served_model),
        "components": {
            "schemas": SCHEMAS | {"EmbeddingsRequest": _embeddings_request(served_model)},
            "securitySchemes": {
                "admin": {"type": "http", "scheme": "bearer", "description": "The admin token of the server."}
            },
        },
    }


def _own_paths() -> Json:
    return {
        "/health": {
            "get": _operation(
                "Say that the server lives, and whether its cache works: where it does not, the upstream answers.",
                {"200": _json("It lives.", _ref("Health"))},
            )
        },
        "/metrics": {
            "get": _operation("Counts and times for Prometheus.", {"200": _answer("The metrics.", "text/plain", TEXT)})
        },
        "/openapi.json": {
            "get": _operation("This description.", {"200": _json("The description.", {"type": "object"})}),
        },
        "/": {
            "get": _operation(
                "The way to the dashboard.", {"307": {"description": "To /dashboard, for browsers and people."}}
            )
        },
        "/dashboard": {
            "get": _operation(
                "The dashboard's page; it holds no data and asks for them with the admin token.",
                {"200": _answer("The page.", "text/html", TEXT)},
            )
        },
    }


def _admin_paths() -> Json:
    search = {"name": "text", "in": "query", "description": "Part of a question, in any case.", "schema": TEXT}
    paths = {
        "/admin/state": {
            "get": _operation("All that the dashboard shows.", {"200": _json("The state.", _ref("State"))})
        },
        "/admin/entries": {
            "get": _operation(
                f"The newest {FOUND} entries whose question holds a text, newest first; how many hold it; and whether "
                "there was time to look through all: if not, older ones are not among them.",
                {"200": _json("The entries.", _object(entries=_list(_ref("Entry")), found=WHOLE, whole=YES))}
                | _refusals(503),
                parameters=[search],
            )
        },
    } | _admin_commands()
    for path in paths.values():
        for operation in path.values():
            operation["security"] = [{"admin": []}]
            operation["responses"] |= _refusals(401)
    return paths


def _admin_commands() -> Json:
    return {
        "/admin/mark": _command(
            "Say that a hit was wrong (its entry goes), or that a miss was a duplicate; kept with a feedback file.",
            _json("It is marked.", _object(marked={"enum": ["wrong", "same"]}, removed=YES, kept=YES)),
            *(400, 409, 503),
            body=_ref("Mark"),
        ),
        "/admin/judge": _command(
            "Record a person's verdict on a sample; the entry behind a wrong answer goes.",
            _json("It is recorded.", _object(judged={"enum": ["same", "different"]})),
            *(400, 409, 503),
            body=_ref("Judge"),
        ),
        "/admin/usual": _command(
            "Take the questions from now on as the usual stream; the alarm that it has changed ends.",
            _json("It is the usual one now.", _object(usual=TEXT)),
        ),
        "/admin/tenant": _command(
            "Tell the namespace of an API key, for /admin/purge; the key is kept nowhere.",
            _json("It is this.", _object(namespace=TEXT)),
            400,
            body=_ref("Sender"),
        ),
        "/admin/purge": _command(
            "Remove one entry, those of a namespace and all below it, those with a tag, or all; of a namespace, if "
            "asked for, the judged pairs in the feedback file, too: judged_removed is their number.",
            _json("They are gone.", _object(removed=WHOLE, judged_removed=WHOLE)),
            *(400, 503),
            body=_ref("Purge"),
        ),
    }


def _openai_paths(served: str) -> Json:
    above = _refusals_of_either(400, 408, 413, 501, 502, 504)
    passed: Json = {"default": {"description": "Whatever the upstream answers.", "headers": _identified()}} | above
    model = {
        "name": "model",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"},
    }
    path = {
        "name": "path",
        "in": "path",
        "required": True,
        "description": "Any path, slashes included; its form on the wire is kept. A segment . or .. is refused.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"},
    }
    every = {
        method: _operation("Go to the upstream untouched, and come back so.", passed, parameters=[path])
        for method in METHODS
    }
    return {
        "/v1/chat/completions": {"post": _chat()},
        "/v1/embeddings": {"post": _embeddings(served)},
        "/v1/completions": {"post": _operation("Go to the upstream untouched.", passed, body={"type": "object"})},
        "/v1/responses": {"post": _operation("Go to the upstream untouched.", passed, body={"type": "object"})},
        "/v1/models": {
            "get": _operation(
                f"The upstream's models and the served one, {served}; an upstream's failure as it is.", passed
            )
        },
        "/v1/models/{model}": {
            "get": _operation(
                f"About {served} from the server itself, about any other from the upstream.", passed, parameters=[model]
            )
        },
        "/v1/{path}": every,
    }


def _chat() -> Json:
    whole: Json = {
        "description": "The answer, stored or the upstream's; a stream when one was asked for.",
        "headers": _identified() | CACHE_HEADERS,
        "content": {"application/json": {"schema": ANY}, "text/event-stream": {"schema": ANY}},
    }
    other: Json = {"description": "Whatever the upstream answers.", "headers": _identified() | CACHE_HEADERS}
    return _operation(
        "A chat completion, from the cache where it knows the answer. Headers say what the cache did, and why.",
        {"200": whole, "default": other} | _refusals_of_either(400, 408, 413, 415, 502, 504),
        body=_ref("ChatRequest"),
        parameters=[ASKED_PARAMETER],
    )


def _embeddings(served: str) -> Json:
    full = _refusals_of_either(429)
    full["429"]["headers"] |= {
        "Retry-After": {
            "description": "Seconds until there may be room.",
            "schema": {"type": "string", "pattern": "^[0-9]+$"},
        }
    }
    answers = _refusals_of_either(400, 408, 413, 415, 500, 502, 504) | full
    answers["200"] = _json("The embeddings.", _ref("Embeddings"))
    answers["default"] = {"description": "Whatever the upstream answers."}
    return _operation(
        f"Embeddings of length 1: of the model {served} by the server itself, of any other by the upstream.",
        answers,
        body=_ref("EmbeddingsRequest"),
    )


def _embeddings_request(served: str) -> Json:
    return {
        "type": "object",
        "properties": {
            "model": {"anyOf": [{"const": served, "description": "The server's own model."}, TEXT]},
            "input": {"oneOf": [TEXT, {"type": "array", "items": TEXT, "minItems": 1, "maxItems": MOST_TEXTS}]},
            "dimensions": {"type": ["integer", "null"], "minimum": 1, "maximum": MOST_DIMENSIONS},
            "encoding_format": {"enum": ["float", "base64", None]},
            "truncate": {
                "type": ["boolean", "null"],
                "description": "Embed the beginning of a text that is longer than the model reads; else that is a 400 "
                "(unless the server was started with --truncate, and this is not false).",
            },
            "user": TEXT,
        },
        "required": ["model", "input"],
    }


def _operation(summary: str, responses: Json, *, parameters: Sequence[Json] = (), body: Json | None = None) -> Json:
    operation: Json = {
        "summary": summary,
        "parameters": [ID_PARAMETER, *parameters],
        "responses": responses,
    }
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation


def _command(summary: str, done: Json, *refused: int, body: Json | None = None) -> Json:
    """Return a path of the dashboard that changes something; what is wrong with a body refuses each of them."""
    refusals = _refusals(*sorted((*refused, 408, 413, 415)))
    return {"post": _operation(summary, {"200": done} | refusals, body=body)}


def _identified() -> Json:
    schema = {"type": "string", "pattern": REQUEST_ID}
    return {"X-Request-Id": {"description": "The client's, or a new one.", "required": True, "schema": schema}}


def _answer(description: str, kind: str, schema: Json) -> Json:
    return {"description": description, "headers": _identified(), "content": {kind: {"schema": schema}}}


def _json(description: str, schema: Json) -> Json:
    return _answer(description, "application/json", schema)


def _refusals(*statuses: int) -> Json:
    return {str(status): _json(REFUSED[status], _ref("Error")) for status in statuses}


def _refusals_of_either(*statuses: int) -> Json:
    """Return answers that the server or the upstream gives; the upstream's has whatever form it likes."""
    content = {"*/*": {"schema": ANY}}
    return {
        str(status): {
            "description": f"{REFUSED[status]} Or whatever the upstream means by it.",
            "headers": _identified(),
            "content": content,
        }
        for status in statuses
    }


def _object(**properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_null(kind: str) -> Json:
    return {"type": [kind, "null"]}


def _null_or(schema: Json) -> Json:
    return {"anyOf": [{"type": "null"}, schema]}


ALARM: Json = {"since": NUMBER, "told": TEXT}
ESTIMATE: Json = {"judged": WHOLE, "wrong": WHOLE, "rate": _or_null("number"), "bound": NUMBER}
SCHEMAS: Json = {
    "Error": _object(error={**_object(message=TEXT, type=TEXT), "additionalProperties": True}),
    "Health": {
        "type": "object",
        "properties": {"status": {"enum": ["ok", "degraded"]}, "failing": _list(TEXT)},
        "required": ["status"],
    },
    "ChatRequest": {
        "type": "object",
        "description": "OpenAI's request. What is not named here must be equal for a stored answer to serve.",
        "properties": {
            "model": TEXT,
            "messages": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "properties": {
                        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
                        "content": {"oneOf": [TEXT, {"type": "null"}, _list({"type": "object"})]},
                    },
                    "required": ["role", "content"],
                },
            },
            "stream": {"type": "boolean"},
            "temperature": {"type": "number", "minimum": 0, "maximum": 2},
            "n": {"type": "integer", "minimum": 1},
        },
        "required": ["model", "messages"],
    },
    "Embeddings": {
        "type": "object",
        "properties": {
            "object": {"const": "list"},
            "model": TEXT,
            "data": _list(
                _object(
                    object={"const": "embedding"},
                    index=WHOLE,
                    embedding={"oneOf": [_list(NUMBER), {"type": "string", "contentEncoding": "base64"}]},
                )
            ),
            "usage": {
                **_object(prompt_tokens=WHOLE, total_tokens=WHOLE),
                "description": "Tokens the model read (its prompt and special tokens too); words where it cannot say.",
            },
        },
        "required": ["object", "model", "data", "usage"],
    },
    "Mark": {
        **_object(number={"type": "integer", "minimum": 1}, verdict={"enum": ["wrong", "same"]}),
        "description": "The number of one of the latest lookups, and what is true of it.",
    },
    "Judge": {
        **_object(number={"type": "integer", "minimum": 1}, verdict={"enum": ["same", "different"]}),
        "description": "The number of a sample that waits, and whether one answer serves both of its questions.",
    },
    "Sender": {
        "oneOf": [
            {**_object(key={"type": "string", "minLength": 1}), "additionalProperties": False},
            {
                "type": "object",
                "properties": {
                    "headers": {"type": "object", "additionalProperties": TEXT},
                    "query": TEXT,
                },
                "required": ["headers"],
                "additionalProperties": False,
            },
        ]
    },
    "Purge": {
        "oneOf": [
            {**_object(id=TEXT), "additionalProperties": False},
            {
                "type": "object",
                "properties": {"namespace": TEXT, "tag": TEXT},
                "minProperties": 1,
                "additionalProperties": False,
            },
            {**_object(namespace=TEXT, judged={"type": "boolean"}), "additionalProperties": False},
            {**_object(all={"const": True}), "additionalProperties": False},
        ]
    },
    "Entry": _object(
        id=TEXT,
        namespace=TEXT,
        partition=TEXT,
        text=TEXT,
        answer=TEXT,
        created=NUMBER,
        expires=_or_null("number"),
        tags=_list(TEXT),
        size=WHOLE,
    ),
    "Seen": _object(
        number=WHOLE,
        at=NUMBER,
        text=TEXT,
        outcome={"enum": ["hit", "miss"]},
        reason=TEXT,
        similarity=_or_null("number"),
        nearest=TEXT,
        served=TEXT,
        served_id=TEXT,
        mark={"enum": ["wrong", "same", ""]},
        marked=YES,
        namespace=TEXT,
        milliseconds=NUMBER,
    ),
    "State": _object(
        threshold=NUMBER,
        guard={"type": "boolean"},
        turns=TEXT,
        model=TEXT,
        folder=TEXT,
        store=TEXT,
        troubles=_list(_object(**ALARM)),
        entries=_or_null("integer"),
        bytes=_or_null("integer"),
        store_trouble=TEXT,
        lookups=WHOLE,
        hits=WHOLE,
        saved_tokens=WHOLE,
        saved_money=NUMBER,
        saved_seconds=NUMBER,
        median_milliseconds=_or_null("number"),
        reasons={"type": "object", "additionalProperties": WHOLE},
        histogram=_object(hit=_list(WHOLE), miss=_list(WHOLE)),
        keeps_marks=YES,
        latest=_list(_ref("Seen")),
        shadow=YES,
        by_similarity=WHOLE,
        quality=_null_or(_ref("Quality")),
        judge=_null_or(_object(name=TEXT, trouble=TEXT, unreadable=WHOLE)),
        drift=_object(promise=_null_or(_ref("Promise")), stream=_ref("Stream")),
    ),
    "Quality": {
        **_object(
            share=NUMBER,
            margin=NUMBER,
            delta=NUMBER,
            drawn=WHOLE,
            judged=WHOLE,
            dropped=WHOLE,
            waiting=WHOLE,
            left=WHOLE,
            estimate=_object(**ESTIMATE),
            namespaces=_list(_object(namespace=TEXT, threshold=NUMBER, own=YES, **ESTIMATE)),
            to_judge=_list(_ref("Sample")),
        ),
        "description": "How often the cache is wrong, from samples; null where none are drawn.",
    },
    "Sample": _object(
        number=WHOLE,
        asked=TEXT,
        stored=TEXT,
        stored_id=TEXT,
        cosine=NUMBER,
        threshold=NUMBER,
        floor=NUMBER,
        namespace=TEXT,
        drawn=NUMBER,
        answer=TEXT,
        served=YES,
    ),
    "Promise": {
        **_object(
            delta=NUMBER,
            made=YES,
            judged=WHOLE,
            wrong=WHOLE,
            evidence=NUMBER,
            alarm_at=NUMBER,
            alarm=_null_or(_object(**ALARM)),
        ),
        "description": "The evidence that more than a share delta of the answers served is wrong; `made`: whether a "
        "calibration promised that (a threshold given by hand promises nothing).",
    },
    "Stream": {
        **_object(
            reference=WHOLE,
            size=WHOLE,
            missing={"type": "integer"},
            windows=WHOLE,
            first_median=_or_null("number"),
            latest_median=_or_null("number"),
            alarm=_null_or(_object(**ALARM)),
        ),
        "description": "Whether the questions are still those of the beginning.",
    },
}
