"""Idempotency keys: a change that is sent twice is done once, and answered the same.

An answer is kept for a day, encrypted to the token it was asked for with: of a token that a request made, as
of the token that made the request, the store keeps nothing that anybody could sign in with.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool

from umbel_proto.encoding import digest, enc
from umbel_server.api.problems import Problem
from umbel_server.store.api_tokens import Bearer
from umbel_server.store.replies import Replies, Reply

KEY = re.compile(r"[!-~]{1,64}")
_LABEL = "umbel/1/reply"
_REQUEST_LABEL = "umbel/1/request"
_NONCE_BYTES = 12
_KEPT_HEADERS = ("content-type", "location", "etag")


async def answer_once(
    request: Request,
    replies: Replies,
    bearer: Bearer,
    handle: Callable[[Request], Coroutine[Any, Any, Response]],
) -> Response:
    """Answer a request, or repeat the answer it had.

    Args:
        request: It; its header ``Idempotency-Key`` is there.
        replies: The kept answers.
        bearer: Who sent it.
        handle: What does it.

    Raises:
        Problem: The key is not one.
        OtherRequestError: The key came with another request.
        InProgressError: It is being worked on.
    """
    key = request.headers["idempotency-key"]
    if KEY.fullmatch(key) is None:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY, "The idempotency key is not 1 to 64 visible ASCII characters."
        )
    caller = f"token:{bearer.token.id}"
    asked = digest(
        _REQUEST_LABEL,
        request.method,
        request.url.path,
        request.url.query,
        hashlib.sha256(await request.body()).digest(),
    )
    cipher = AESGCM(_cipher_key(request))
    bound = enc(caller, key, asked)
    kept = await run_in_threadpool(replies.begin, caller, key, asked)
    if kept is not None:
        return _open(cipher, kept, bound)
    try:
        response = await handle(request)
    except BaseException:
        await run_in_threadpool(replies.forget, caller, key)
        raise
    reply = Reply(response.status_code, _seal(cipher, response, bound))
    await run_in_threadpool(replies.finish, caller, key, reply)
    return response


def _cipher_key(request: Request) -> bytes:
    token = request.headers["authorization"].partition(" ")[2]
    return HKDF(hashes.SHA256(), 32, salt=None, info=_LABEL.encode()).derive(token.encode())


def _seal(cipher: AESGCM, response: Response, bound: bytes) -> bytes:
    headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
    plain = json.dumps({"headers": headers, "body": base64.b64encode(bytes(response.body)).decode()})
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, plain.encode(), bound)


def _open(cipher: AESGCM, kept: Reply, bound: bytes) -> Response:
    try:
        plain = json.loads(cipher.decrypt(kept.sealed[:_NONCE_BYTES], kept.sealed[_NONCE_BYTES:], bound))
    except InvalidTag:
        raise Problem(
            HTTPStatus.CONFLICT, "The answer to this request is damaged: look what it did."
        ) from None
    return Response(base64.b64decode(plain["body"]), kept.status, plain["headers"])
