"""The picture of an alias's moves."""

import io

import pytest
from PIL import Image

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.figures import aliases


def move(before, after, cause, latest, earliest=None, alias="champion", event=1):
    return ledger.Change(
        name="m",
        alias=alias,
        before=before,
        after=after,
        cause=cause,
        earliest=f"2026-03-{earliest or latest}T12:00:00.000+00:00",
        latest=f"2026-03-{latest}T12:00:00.000+00:00",
        actor=None,
        noticed_by=None,
        how=None,
        decision=None,
        policy_digest=None,
        event=event,
    )


LIFE = [
    move(None, "1", "first seen", "01"),
    move("1", "3", "promote", "06"),
    move("3", "4", "promote", "12"),
    move("4", "2", "direct", "17", "15"),
    move("2", "4", "rollback", "18"),
    move("4", None, "direct", "24"),
    move(None, "5", "promote", "26"),
    move(None, "4", "merge", "03", alias="candidate"),
    move("4", "5", "merge", "20", alias="candidate"),
]
END = "2026-03-31T00:00:00.000+00:00"


def opened(content):
    return Image.open(io.BytesIO(content))


def test_each_alias_has_a_panel():
    both = opened(aliases.draw("m", LIFE, END))
    one = opened(aliases.draw("m", LIFE[:7], END))
    assert (both.format, one.format) == ("PNG", "PNG")
    assert both.width == one.width
    assert both.height > one.height


@pytest.mark.parametrize("cause", [*aliases.MARKERS, "promote"])
def test_every_cause_is_drawn_in_another_way(cause):
    others = {*aliases.MARKERS, "promote"} - {cause}
    drawn = aliases.draw("m", [move("1", "2", cause, "02")], END)
    for other in others:
        assert aliases.draw("m", [move("1", "2", other, "02")], END) != drawn
    grey = opened(drawn).convert("L").tobytes()  # and so without colour
    for other in others:
        content = aliases.draw("m", [move("1", "2", other, "02")], END)
        assert opened(content).convert("L").tobytes() != grey


def test_hundreds_of_versions_are_drawn():
    many = [
        move(str(number), str(number + 1), "promote", f"{1 + number % 28:02d}", event=number)
        for number in range(300)
    ]
    assert opened(aliases.draw("m", many, END)).height < 1200


def test_a_single_direct_removal_is_drawn():
    assert opened(aliases.draw("m", [move("1", None, "direct", "02")], END)).format == "PNG"


def test_nothing_to_draw(tmp_path):
    with pytest.raises(errors.LedgerError, match="no moves of aliases of m to draw"):
        aliases.write("m", [], str(tmp_path / "x.png"))


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(errors.OutputError, match=r"can't write the picture to .*none/x.png: No"):
        aliases.write("m", LIFE, str(tmp_path / "none" / "x.png"))
