"""Who may ask, and how: methods, Host, token; and what every answer carries.

Nothing behind it sees a request that it refuses.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Sequence
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featurestore.errors import BiomassError
from service import log
from service.errors import ServiceError

MOST_URL_BYTES = 8192  # as nginx and Apache allow
MOST_REQUESTS = 256  # under way at once; each may hold file_bytes.CHUNK_BYTES twice
OPEN = ("/healthz",)  # without a token: a monitor has none
STATIC = "/static/"  # nor has the page that asks for it; these files tell nothing of a store
HEADERS = {
    # data: thumbnails come many at a time, as text
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Guard:
    """Lets allowed requests through, their addresses still percent-encoded; refuses others.

    entrance : the page that asks for the token, which a browser gets in place of the page itself.
    """

    def __init__(
        self,
        app: ASGIApp,
        token: str | None,
        hosts: Sequence[str],
        entrance: bytes,
    ) -> None:
        self.n_now = 0
        self.app = app
        self.token = token
        self.entrance = entrance
        self.hosts = {host.strip("[]").lower() for host in hosts}
        # cookies know no port: servers of other tokens on this host must not overwrite ours
        self.cookie = f"biomass-{hashlib.sha256((token or '').encode()).hexdigest()[:8]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            raise RuntimeError("only HTTP is served")
        # percent-encoded, as routes match it: a name may hold a slash
        raw_path = scope.get("raw_path") or scope["path"].encode()
        scope["path"] = raw_path.decode("latin-1")
        scope["state"] = {}
        self.n_now += 1
        answer = _Answer(scope, send)
        try:
            refusal = self._refusal(scope)
            await (refusal or self.app)(scope, receive, answer.send)
        except asyncio.CancelledError:  # the server is to end, and has waited for what is under way
            if answer.has_begun:
                raise
            error = ServiceError("busy", "the server ends", "ask again once it is back")
            await error.answer()(scope, receive, answer.send)
        except Exception as err:
            # Starlette wraps what an answer breaks off with
            known = err if isinstance(err, BiomassError) else err.__cause__
            if isinstance(known, BiomassError):
                log.say(f"{scope['method']} {scope['path']}: {known}")
            else:
                log.say_traceback(f"{scope['method']} {scope['path']}")
            if answer.has_begun:
                raise  # the server cuts the connection: a body that ends early must not look whole
            error = ServiceError("internal", "the server failed", "its log says why")
            await error.answer()(scope, receive, answer.send)
        finally:
            self.n_now -= 1

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that goes no further."""
        headers = Headers(scope=scope)
        try:
            _check_form(scope, headers)
            # else a page of somebody else's could read us through a name that leads here (DNS
            # rebinding)
            given = headers.getlist("host")
            if len(given) != 1 or _host_name(given[0]) not in self.hosts:
                raise ServiceError(
                    "bad-request",
                    "this Host is not one the server answers for",
                    "use the address it printed, or start it with --allow-host NAME",
                )
            if scope["path"] in OPEN:
                return None
            is_static = scope["path"].startswith(STATIC)
            if self.token and not is_static and (response := self._check_token(scope, headers)):
                return response
            if self.n_now > MOST_REQUESTS:
                raise ServiceError(
                    "busy",
                    f"{MOST_REQUESTS} requests are under way",
                    "ask again in some seconds",
                )
            return None
        except ServiceError as err:
            response = err.answer()
            # a browser that opens a page names HTML; a program takes what comes
            reads_html = "text/html" in headers.get("accept", "")
            if err.kind == "unauthorized" and scope["path"] == "/" and reads_html:
                fields = {"Cache-Control": "no-store", **err.headers}
                response = HTMLResponse(self.entrance, err.status, fields)
            response.headers["Connection"] = "close"
            return response

    def _check_token(self, scope: Scope, headers: Headers) -> Response | None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(given.strip()):
            return None
        # as browsers send it, whatever other cookies this host has
        cookies = cookie_parser(headers.get("cookie", ""))
        if self._is_token(cookies.get(self.cookie, "")):
            return self._without_token(scope) if scope["path"] == "/" else None
        entering = scope["path"] == "/" and self._is_token(dict(_query(scope)).get("token", ""))
        if entering:
            return self._without_token(scope)
        raise ServiceError(
            "unauthorized",
            "no token, or not the right one",
            "open the URL the server printed, or send Authorization: Bearer TOKEN",
            {"WWW-Authenticate": "Bearer"},
        )

    def _without_token(self, scope: Scope) -> Response | None:
        """A redirect that turns the address's token into a cookie; None without a token."""
        query = _query(scope)
        if "token" not in dict(query):
            return None
        if not self._is_token(dict(query)["token"]):
            raise ServiceError(
                "unauthorized",
                "the token in the address is not the right one",
                "open the URL the server printed",
            )
        rest = urlencode([(key, value) for key, value in query if key != "token"])
        # relative, and a cookie without a path, which is the page's own: a proxy may have put it
        # below some prefix
        response = RedirectResponse(
            f"./?{rest}" if rest else "./",
            303,
            {"Cache-Control": "no-store"},
        )
        response.set_cookie(self.cookie, self.token, path=None, httponly=True, samesite="strict")
        return response

    def _is_token(self, given: str) -> bool:
        # in constant time: how long it takes must not tell how much of a guess was right
        return hmac.compare_digest(given.encode(errors="replace"), self.token.encode())


class _Answer:
    """Adds what every answer carries; sends no body to HEAD."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope = scope
        self._send = send
        self.has_begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("Cache-Control", "private, no-cache")
            if opened := self.scope["state"].get("opened"):
                headers["X-Store-Generation"] = opened.generation
        elif self.scope["method"] == "HEAD":
            message = {**message, "body": b""}
        await self._send(message)


def _query(scope: Scope) -> list[tuple[str, str]]:
    return parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)


def _check_form(scope: Scope, headers: Headers) -> None:
    if scope["method"] not in ("GET", "HEAD"):
        raise ServiceError(
            "method-not-allowed",
            "only GET and HEAD are answered",
            "",
            {"Allow": "GET, HEAD"},
        )
    if len(scope["path"]) + len(scope["query_string"]) > MOST_URL_BYTES:
        raise ServiceError("too-long", f"an address has at most {MOST_URL_BYTES} bytes")
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise ServiceError("bad-request", "a request here has no body")


def _host_name(host: str) -> str:
    """A Host header without its port and brackets."""
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]") or not port.isdecimal():
        name = host
    return name.strip("[]").lower()
