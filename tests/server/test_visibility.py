"""What is said without the names that may not be read."""

import pytest

from mlflow_breadcrumbs.server import visibility

HIDDEN = visibility.HIDDEN
HERE = visibility.Sight(lambda name: name in ("seen", "a/b"), lambda experiment: True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("models:/seen/1 is well", "models:/seen/1 is well"),
        ("models:/other/1", HIDDEN),
        ("models:/other/12: bad", f"{HIDDEN}: bad"),
        ("of models:/an other one/3 and models:/seen/2", f"of {HIDDEN} and models:/seen/2"),
        ("models:/other@champion is well", f"{HIDDEN} is well"),
        ("models:/seen@champion, models:/other@best", f"models:/seen@champion, {HIDDEN}"),
        ("models:/m-5c1d and models:/seen/1", f"{HIDDEN} and models:/seen/1"),
        (
            "Registered Model with name=other not found",
            f"Registered Model with name={HIDDEN} not found",
        ),
        (
            "Version (name=other, version=3) not found",
            f"Version (name={HIDDEN}, version=3) not found",
        ),
        ("models:/, and nothing", "models:/, and nothing"),
    ],
)
def test_a_sentence(text, told):
    assert HERE.told(text) == told
    assert visibility.everything().told(text) == text


def test_an_answer_is_told_through():
    said = {"a": ["models:/other/1", 3, None], "b": {"c": ("models:/seen/1",)}, "d": True}
    assert HERE.told(said) == {"a": [HIDDEN, 3, None], "b": {"c": ["models:/seen/1"]}, "d": True}
