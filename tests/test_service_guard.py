"""Who may ask: token, cookie, Host, methods; what every answer carries and what none tells."""

import os
import re
import subprocess
import sys
from http.client import HTTPConnection

import pytest
from served import BEARER, TOKEN, client_of, error_of, serving, write_served

from service.routes.page import FILES

S = "/v1/stores/features"
STATIC = f"/static/{FILES.folder}"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_served(tmp_path_factory.mktemp("guarded"), "h5", seal=4)


@pytest.fixture
def client(path):
    """Without a token."""
    return client_of(path, headers={})


WRONG = [
    None,
    "",
    "Bearer",
    "Bearer x",
    f"Bearer {TOKEN.upper()}",
    f"Bearer {TOKEN}x",
    f"Basic {TOKEN}",
    TOKEN,
    "Bearer ü".encode("latin-1"),
]


@pytest.mark.parametrize("authorization", WRONG, ids=repr)
def test_s02_without_the_token_nobody_gets_in(client, authorization):
    answer = client.get(
        "/v1/stores", headers=[] if authorization is None else [("Authorization", authorization)]
    )
    assert error_of(answer) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "features" not in answer.text


def test_s02_a_token_in_a_query_counts_for_the_page_alone(client):
    assert error_of(client.get(f"/v1/stores?token={TOKEN}")) == (401, "unauthorized")
    assert error_of(client.get("/?token=wrong")) == (401, "unauthorized")
    assert client.get("/healthz").json() == {"status": "ok"}


def test_s02_the_page_moves_the_token_into_a_cookie(client):
    answer = client.get(f"/?token={TOKEN}&store=features&view=a%26b")
    assert (answer.status_code, answer.headers["Location"]) == (303, "./?store=features&view=a%26b")
    cookie = answer.headers["Set-Cookie"]
    assert (
        TOKEN in cookie
        and "HttpOnly" in cookie
        and "SameSite=strict" in cookie
        and "Path" not in cookie
    )
    assert client.get("/v1/stores").status_code == 200  # the client keeps cookies as a browser does


BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.mark.parametrize("query", ["", "?token=wrong", "?store=features"])
def test_a_browser_without_the_token_gets_a_page_with_a_field_for_it(client, query):
    answer = client.get(f"/{query}", headers=BROWSER)
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert answer.headers["Cache-Control"] == "no-store"
    assert 'name="token"' in answer.text and "features" not in answer.text


def test_programs_and_other_addresses_get_json(client):
    for accept in ("*/*", "application/json", ""):
        refused = client.get("/", headers={"Accept": accept})
        assert error_of(refused) == (401, "unauthorized")
    assert error_of(client.get("/v1/stores", headers=BROWSER)) == (401, "unauthorized")


def test_static_files_alone_need_no_token(client):
    for name in ("token.js", "style.css", "main.js"):
        assert client.get(f"{STATIC}/{name}").status_code == 200
    for address in ("/static/../v1/stores", "/static/..%2Fv1/stores", "/static/../guard.py"):
        assert client.get(address).status_code in (401, 404)
    for address in ("/openapi.json", "/metrics", "/static", f"{S}/images/@0/thumb.jpg"):
        assert error_of(client.get(address)) == (401, "unauthorized")
    assert error_of(client.get(f"{STATIC}/main.js", headers={"Host": "evil.example"}))[0] == 400


def test_servers_of_other_tokens_have_other_cookies(client, path):
    client.get(f"/?token={TOKEN}")
    assert re.fullmatch(r"biomass-[0-9a-f]{8}", next(iter(client.cookies)))
    other = client_of(path, headers={"Cookie": f"biomass-00000000={TOKEN}"})
    assert error_of(other.get("/v1/stores")) == (401, "unauthorized")


def test_cookies_of_other_servers_of_this_host_do_not_hide_ours(client, path):
    client.get(f"/?token={TOKEN}")
    name = next(iter(client.cookies))
    crowded = client_of(path, headers={"Cookie": f'state={{"a": "b,c"}}; =; x; {name}={TOKEN}'})
    assert crowded.get("/v1/stores").status_code == 200


def test_s03_no_other_site_may_read_or_embed(path):
    client = client_of(path)
    for origin in ("https://evil.example", "null"):
        for address in ("/v1/stores", f"{S}/rows/@0/0", "/nix"):
            headers = client.get(address, headers={"Origin": origin}).headers
            assert not [name for name in headers if name.lower().startswith("access-control")]
            assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert {"default-src 'self'", "frame-ancestors 'none'"} <= set(
                headers["Content-Security-Policy"].split("; ")
            )
            assert "unsafe" not in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "evil.example:8000", "", "127.0.0.1@evil", "[::2]"],
)
def test_another_host_name_is_refused(path, host):
    assert error_of(client_of(path).get("/v1/stores", headers={"Host": host})) == (
        400,
        "bad-request",
    )


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:9", "localhost:8000", "LOCALHOST", "[::1]:8000", "[::1]"]
)
def test_loopback_by_any_of_its_names(path, host):
    assert client_of(path).get("/v1/stores", headers={"Host": host}).status_code == 200


ASTRAY = [
    "..",
    "%2e%2e",
    "%252e%252e",
    "%00",
    "a%00b",
    "..%5c..",
    "%2fetc%2fpasswd",
    "..%2f..%2fetc%2fpasswd",
    "x" * 4096,
    "%ff",
    "..%c0%af",
    "%0d%0aX-A:%20b",
    "features.h5",
    ".",
]


@pytest.fixture(scope="module")
def served(path):
    with serving(path) as url:
        yield url.removeprefix("http://")


@pytest.mark.parametrize("name", ASTRAY, ids=lambda name: name[:20])
def test_s04_names_are_looked_up_and_never_paths(served, name):
    for below in (
        "{}",
        "rows/{}/0",
        "rows/@0/{}",
        "arrays/{}",
        "arrays/catalog/{}",
        "zarr/{}",
        "zarr/{}/zarr.json",
        "zarr/cls/c/{}",
    ):
        connection = HTTPConnection(served, timeout=60)  # it sends an address as it is
        connection.request("GET", f"{S}/{below.format(name)}")
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        assert answer.status == 404, below
        assert "guarded0" not in text and "Traceback" not in text and "root:" not in text


def test_too_long_an_address(path):
    assert error_of(client_of(path).get(f"{S}/rows/{'x' * 9000}/0")) == (414, "too-long")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_s11_only_get_and_head(path, method):
    answer = client_of(path).request(method, "/v1/stores")
    assert error_of(answer) == (405, "method-not-allowed")
    assert (answer.headers["Allow"], answer.headers["Connection"]) == ("GET, HEAD", "close")


@pytest.mark.parametrize(
    "headers", [{"Content-Length": "5"}, {"Transfer-Encoding": "chunked"}], ids=str
)
def test_s11_no_request_has_a_body(path, headers):
    content = b"abcde" if "Content-Length" in headers else iter([b"a"])
    answer = client_of(path).request("GET", "/v1/stores", headers=headers, content=content)
    assert error_of(answer) == (400, "bad-request")
    assert answer.headers["Connection"] == "close"


def test_s18_no_error_tells_a_path_or_a_traceback(path, monkeypatch, capfd):
    def broken(*_):
        raise RuntimeError(f"{path} broke\nerror: a forged line \x1b[2J")

    monkeypatch.setattr("service.routes.stores.describe", broken)
    answer = client_of(path).get(S + "?token=secret%0aforged")
    assert error_of(answer) == (500, "internal")
    assert str(path) not in answer.text and "RuntimeError" not in answer.text
    log = capfd.readouterr().err
    assert "RuntimeError" in log and "\x1b" not in log and "secret" not in log and TOKEN not in log
    assert all(line.startswith((f"error: GET {S}", "  | ")) for line in log.splitlines())


@pytest.mark.parametrize(
    "also, told",
    [
        ("x/y", "features: a part of features/cls is odd; see x/y"),
        ("/srv/other place.txt", "the server's log says what is wrong"),
    ],
)
def test_s18_messages_of_the_store_lose_their_paths(path, monkeypatch, capfd, also, told):
    from featurestore import FeatureStore
    from featurestore.errors import InputError

    def refuse(self):
        raise InputError(f"{self.path}: a part of {self.path}/cls is odd; see {also}")

    monkeypatch.setattr(FeatureStore, "stats", refuse)
    answer = client_of(path).get(f"{S}/stats.json")
    assert error_of(answer) == (404, "not-found")
    assert answer.json()["error"]["message"] == told
    assert ("/srv/other place.txt" in capfd.readouterr().err) == ("log" in told)


def test_more_requests_than_may_be_under_way_are_busy(path, monkeypatch):
    monkeypatch.setattr("service.connection.guard.MOST_REQUESTS", 0)
    client = client_of(path)
    answer = client.get("/v1/stores")
    assert error_of(answer) == (503, "busy") and int(answer.headers["Retry-After"]) > 0
    assert client.get("/healthz").status_code == 200
    assert error_of(client_of(path, headers={}).get("/v1/stores")) == (401, "unauthorized")


def test_counts_for_prometheus(path):
    client = client_of(path)
    client.get(f"{S}/rows/@0/0")
    client.get("/nix")
    text = client.get("/metrics").text
    assert (
        'biomass_requests_total{address="/v1/stores/{s}/rows/{image}/{view}",status="200"} 1'
        in text
    )
    assert 'biomass_requests_total{address="other",status="404"} 1' in text
    assert 'biomass_request_seconds_bucket{le="+Inf"} 2' in text and text.endswith("\n")
    assert BEARER["Authorization"] not in text


@pytest.mark.parametrize("exists", [True, False], ids=["a folder", "no such folder"])
def test_counts_stay_in_memory_whatever_other_programs_share(exists, tmp_path):
    folder = tmp_path / "shared"
    if exists:
        folder.mkdir()
    script = "from service.connection.metrics import Metrics; Metrics().sent.inc()"
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    subprocess.run([sys.executable, "-W", "error", "-c", script], env=environment, check=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["shared"] * exists
