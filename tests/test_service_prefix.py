"""The page below a path prefix, as jupyter-server-proxy and code-server have it: nothing is asked
for outside of the prefix."""

import http.client
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookiejar import CookieJar
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urljoin, urlsplit
from urllib.request import HTTPCookieProcessor, Request, build_opener

import numpy as np
import pytest
from conftest import tiny_rows
from served import TOKEN, serving, write_served

from featurestore import FeatureStore
from service.routes.page import FILES

PAGE = Path(__file__).parent.parent / "service" / "page"
PREFIX = "/user/me/proxy/8571"


class Proxy(BaseHTTPRequestHandler):
    """PREFIX/x is x of the server behind it; all else is nobody's, and noted."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self.path.startswith(f"{PREFIX}/"):
            self.server.outside.append(self.path)
            self.answer(404, [], b"")
            return
        behind = http.client.HTTPConnection(self.server.behind)
        behind.request("GET", self.path.removeprefix(PREFIX), headers=dict(self.headers))
        response = behind.getresponse()
        self.answer(response.status, response.getheaders(), response.read())
        behind.close()

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def proxied(url: str) -> Iterator[tuple[str, list[str]]]:
    """The page's address below the prefix, and what was asked for outside of it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.behind, server.outside, server.daemon_threads = urlsplit(url).netloc, [], True
    threading.Thread(target=server.serve_forever).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{PREFIX}/", server.outside
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = write_served(tmp_path_factory.mktemp("prefix"), "h5")
    with serving(path, token=TOKEN) as url, proxied(url) as proxy:
        yield proxy


@pytest.fixture
def browser():
    """Follows redirects and keeps cookies as a browser does."""
    jar = CookieJar()
    opener = build_opener(HTTPCookieProcessor(jar))
    opener.jar = jar
    return opener


def links_of(url: str, text: str) -> set[str]:
    """What a page leads to, as a browser resolves it."""
    found = re.findall(r'(?:href|src)="([^"]*)"', text) if url.endswith("/") else []
    return {urljoin(url, each) for each in found if not each.startswith("#")}


def test_the_page_and_all_it_asks_for_lie_below_the_prefix(page, browser):
    url, outside = page
    with browser.open(f"{url}?token={TOKEN}&store=features") as answer:
        assert answer.url == f"{url}?store=features"
    (cookie,) = browser.jar
    assert cookie.path == PREFIX
    waiting, seen = {url}, set()
    while waiting:
        address = waiting.pop()
        seen.add(address)
        with browser.open(address) as answer:
            assert answer.status == 200
            waiting |= links_of(address, answer.read().decode(errors="replace")) - seen
    names = {address.rsplit("/", 1)[1] for address in seen}
    assert {"main.js", "style.css", "icon.svg", "stores"} <= names and not outside


def test_the_page_that_asks_for_the_token_lies_below_the_prefix_too(page):
    url, outside = page
    with pytest.raises(HTTPError, match="401") as refused:
        build_opener().open(Request(url, headers={"Accept": "text/html"}))
    links = links_of(url, refused.value.read().decode())
    names = {link.removeprefix(f"{url}static/{FILES.folder}/") for link in links}
    assert names == {"icon.svg", "style.css", "token.js"}
    for link in links:
        build_opener().open(link).close()
    assert not outside


def test_tables_lead_on_below_the_prefix(page, browser):
    url, outside = page
    headers = {"Authorization": f"Bearer {TOKEN}"}
    address, lines = f"{url}v1/stores/features/catalog.csv?columns=image_id&limit=2", []
    while address:
        with browser.open(Request(address, headers=headers)) as answer:
            lines += answer.read().decode().splitlines()[1:]
            link = re.fullmatch(r'<(.*)>; rel="next"', answer.headers.get("Link", ""))
            address = urljoin(answer.url, link[1]) if link else None
    assert lines == [f"ID{i:03d}" for i in range(5)] and not outside


def test_the_cookie_is_for_the_prefix_and_nothing_beside_it(page, browser):
    url, outside = page
    with pytest.raises(HTTPError, match="401"):
        browser.open(f"{url}v1/stores")
    browser.open(f"{url}?token={TOKEN}").close()
    with browser.open(f"{url}v1/stores") as answer:
        assert json.load(answer)["stores"][0]["name"] == "features"
    request = Request(urljoin(url, "/user/me/proxy/9999/"))
    browser.jar.add_cookie_header(request)
    assert not request.has_header("Cookie")


def test_a_store_is_opened_through_the_prefix(page, tmp_path):
    url, outside = page
    with FeatureStore.open(f"{url}v1/stores/features?token={TOKEN}", cache=tmp_path) as store:
        assert np.array_equal(store.patches[3, 1], tiny_rows(store.spec, 3).patches_VTPD[1])
    assert not outside


def test_no_address_of_the_page_is_absolute():
    """An address of the service that begins with / passes through `here` or `ofState` on its way to the
    browser."""
    for file in PAGE.rglob("*"):
        text = file.read_text() if file.is_file() else ""
        assert not re.search(r"""(href|src)\s*[=:]\s*["'`]/|fetch\((?!here\(|ofState\()""", text), (
            file
        )
        assert file.suffix != ".css" or "url(/" not in text
