"""Passwords and tokens are masked in whatever text they stand."""

import pytest

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.support import credentials


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://ann:p@ss/w@h/db failed", "postgresql://ann:***@h/db failed"),
        ("'http://u:pw@h:5000/api' is x@y", "'http://***@h:5000/api' is x@y"),
        ("HTTPS://ghp_x@github.com/a/b", "HTTPS://***@github.com/a/b"),
        ("mysql+pymysql://:pw@h", "mysql+pymysql://:***@h"),
        ('{"a": "redis://u:pw@h", "b": "c@d"}', '{"a": "redis://u:***@h", "b": "c@d"}'),
        (
            "https://s/x?X-Amz-Signature=ab12&X-Amz-Credential=id&page=2",
            "https://s/x?X-Amz-Signature=***&X-Amz-Credential=***&page=2",
        ),
        ("https://s/x?se=1&sig=a%2Bb#top", "https://s/x?se=1&sig=***#top"),
        ("?access_token=abc, then", "?access_token=*** then"),
        ("host=h password=hunter2 port=1", "host=h password=*** port=1"),
        ("{'Authorization': 'Bearer abc.d-e'}", "{'Authorization': 'Bearer ***'}"),
    ],
)
def test_masked(text, expected):
    assert credentials.hidden(text) == expected
    assert credentials.hidden(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "models:/clip-merged@champion",
        "models:/a:b@c",
        "http://127.0.0.1:5000/path@2 and models:/m@x",
        "sqlite:////tmp/a@b/mlflow.db",
        "postgresql://ann@host:5432/x of bob@host",
        "s3://bucket/key?versionId=3",
        "the password is wrong",
    ],
)
def test_left_alone(text):
    assert credentials.hidden(text) == text


def test_every_error_of_the_package_is_masked():
    def kinds(of):
        return [of, *(kind for each in of.__subclasses__() for kind in kinds(each))]

    found = kinds(errors.BreadcrumbsError)
    assert len(found) > 20
    for kind in found:
        assert str(kind("postgresql://ann:hunter2@h/x")) == "postgresql://ann:***@h/x", kind


def test_what_is_recorded():
    value = {"a": ["http://u:pw@h", 1, None, {"b": ("x?token=y",)}]}
    assert credentials.cleaned(value) == {"a": ["http://***@h", 1, None, {"b": ["x?token=***"]}]}
    assert value["a"][0] == "http://u:pw@h"
