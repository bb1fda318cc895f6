"""What the server answers at all: Gradio has many more addresses than this page needs, some of them about files."""

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The page, its scripts and styles; the events of its controls; the description of its API.
NEEDED = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?|/(assets|static|svelte)/[\w./-]+"
    r"|/gradio_api/(app_id|login_check|startup-events|info|cancel|reset|queue/(join|data)|heartbeat/\w+"
    r"|(call|api|run)/\w+(/\w+)?)/?"
)
LARGEST = 2**16  # bytes of a request's body; those of the page are below 1,000
# The browser loads nothing from anywhere else, whatever the page's libraries would like to.
POLICY = (
    "default-src 'self'; img-src 'self' data:; font-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; object-src 'none'; base-uri 'self'"
)
HEADERS = [(b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff"),
           (b"referrer-policy", b"no-referrer")]  # fmt: skip


class Gate:
    """ASGI middleware: 404 for an address that the page does not need, 413 for a body that is too large."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        if not NEEDED.fullmatch(scope["path"]) or ".." in scope["path"]:
            return await _refuse(send, 404, b"not part of this page")
        if _body_length(scope) > LARGEST:
            return await _refuse(send, 413, b"too large")

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        await self.app(scope, receive, with_headers)


def _body_length(scope: Scope) -> float:
    """Bytes that the request announces; infinite if it has a body of unknown length."""
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return float("inf")
    length = headers.get(b"content-length", b"0")
    return int(length) if length.isdigit() else float("inf")


async def _refuse(send: Send, status: int, text: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": text})
