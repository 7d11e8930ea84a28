"""The OpenAPI document: of every address, and true by schemathesis's account."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from served import BEARER, TOKEN, app_of, client_of, write_served
from starlette.routing import Route


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_served(tmp_path_factory.mktemp("openapi"), "h5", seal=4)


@pytest.fixture(scope="module")
def document(path):
    return client_of(path).get("/openapi.json").json()


def test_every_address_is_in_it(path, document):
    routes = [route for route in app_of(path).routes if isinstance(route, Route)]
    assert {route.path.replace(":path}", "}") for route in routes} == set(document["paths"])
    operations = [each["get"] for each in document["paths"].values()]
    assert len({each["operationId"] for each in operations}) == len(operations)
    assert all(each["summary"] and each["responses"]["200"] for each in operations)
    assert not [each["summary"] for each in operations if not each["summary"].endswith(".")]


OPERATIONS = [
    "/healthz",
    "/metrics",
    "/openapi.json",
    "/v1/stores",
    "/v1/stores/{s}",
    "/v1/stores/{s}/catalog.{format}",
    "/v1/stores/{s}/stats.{format}",
    "/v1/stores/{s}/rows/{image}/{view}",
    "/v1/stores/{s}/arrays/{name}",
    "/v1/stores/{s}/zarr/{key}",
    "/v1/stores/{s}/file",
]


@pytest.mark.parametrize("address", OPERATIONS)
def test_answers_are_as_documented(path, address):
    headers = {**BEARER, "Host": "127.0.0.1"}
    schema = schemathesis.openapi.from_asgi(
        "/openapi.json", app_of(path, token=TOKEN), headers=headers
    )

    @given(schema[address]["GET"].as_strategy())
    @settings(
        max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    def check(case):
        # names of columns are the store's own: which are accepted no schema can say
        case.call_and_validate(headers=headers, excluded_checks=[positive_data_acceptance])

    check()
