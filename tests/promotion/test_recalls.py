"""A version that turned out to be bad: what descends from it is not promoted, and all see it."""

import json

import mlflow
import pytest
from click.testing import CliRunner

from mlflow_breadcrumbs import cli, errors, ledger
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.promotion import policies, promote, recalls, rollback
from mlflow_breadcrumbs.registry import catalog, tag_keys, versions
from mlflow_breadcrumbs.server import lineage_page, model_page, version_page, visibility

RULES = policies.parse("freeze: [{starts: 2001-01-01, ends: 2001-01-02}]")


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.main, ["recall", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def promoted(uri, alias="champion"):
    return promote.promote(promote.PromotionRequest(uri, alias, RULES))


def test_a_recalled_source_takes_what_was_made_of_it_out_of_use(family):
    """`top` is a merge of `merged`, which is a merge of the source."""
    source = family.sources[0]
    assert promoted(family.top, "live").result == "promoted"
    said = json.loads(run(source, "--reason", "trained on test images", "--json").stdout)
    assert [entry["uri"] for entry in said["affected"]] == [family.merged, family.top]
    assert said["live"] == ["top@live"]
    assert versions.resolve(source).tags[tag_keys.RECALLED] == "trained on test images"
    for uri, what in ((family.top, "it was made from"), (source, "these weights were")):
        decision = promoted(uri)
        (rule,) = (rule for rule in decision.verdict.rules if rule.name == "recalled")
        assert (decision.result, rule.verdict) == ("refused", "failed")
        assert what in rule.sentence
        assert "trained on test images" in rule.sentence
    request = flow.MergeRequest(
        base=family.base,
        sources=(source, family.sources[1]),
        registered_model="again",
        recipe=recipe.MergeRecipe.from_method("ties", sources=2),
        device="cpu",
    )
    with pytest.raises(errors.MergeError, match=r"was recalled: trained on test images\. Leave it"):
        flow.merge(request)
    text = run(source, "--reason", "once more").output
    assert "live now: top@live" in text
    past = [event.kind for event in ledger.history(source.split("/")[1])]
    assert past.count(recalls.RECALLED) == 1
    assert not run(source, "--withdraw").exit_code
    assert promoted(family.top).result == "promoted"
    assert tag_keys.RECALLED not in versions.resolve(source).tags
    assert "are not recalled, so there is nothing" in run(source, "--withdraw", code=1).output
    assert ledger.verify().holds


def test_the_tag_alone_neither_recalls_nor_withdraws(family):
    """Anybody may set it."""
    client = mlflow.MlflowClient()
    name, number = family.merged.removeprefix("models:/").split("/")
    client.set_model_version_tag(name, number, tag_keys.RECALLED, "says who?")
    assert promoted(family.top).result == "promoted"
    recalls.recall(family.merged, "bad")
    client.delete_model_version_tag(name, number, tag_keys.RECALLED)
    assert promoted(family.top).result == "refused"


def test_nothing_recalled_is_gone_back_to(family):
    for uri in (family.merged, family.top):
        assert promoted(uri).result == "promoted"
    name = family.merged.split("/")[1]
    copy = mlflow.MlflowClient().copy_model_version(family.top, name)
    assert promoted(f"models:/{name}/{copy.version}").result == "promoted"
    recalls.recall(family.merged, "bad")
    done = rollback.rollback(name, "champion")
    assert not done.moved
    assert f"{family.merged} is skipped: {family.merged} was recalled by" in done.skipped[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--reason", " "), "the reason of a recall has 1 characters; say in 1 to 1000 why"),
        ((), "the reason of a recall has 0 characters"),
        (("--reason", "x" * 1001), "has 1001 characters"),
    ],
)
def test_a_recall_says_why(family, arguments, words):
    head = ledger.head()
    assert words in run(family.merged, *arguments, code=1).output
    assert ledger.head() == head


def test_what_has_no_digest_can_not_be_recalled(family):
    client = mlflow.MlflowClient()
    client.create_registered_model("plain")
    client.create_model_version("plain", "nowhere")
    said = run("plain/1", "--reason", "bad", code=1).output
    assert "nothing says which weights models:/plain/1 was registered with" in said
    logged = f"models:/{versions.resolve(family.merged).model_id}"
    assert "is not registered; recall a version" in run(logged, "--reason", "bad", code=1).output


def test_the_pages_say_it(family):
    sight = visibility.everything()
    before = model_page.gather("top", sight, most=9)
    promoted(family.top, "live")
    recalls.recall(family.sources[0], "<bad>")
    page = version_page.gather("top", "1", sight)
    (text,) = page.recalls
    assert text.startswith(f"It was made from {family.sources[0]}, which was recalled by ")
    (found,) = (
        e
        for e in model_page.gather("top", sight, most=9).attention
        if e not in before.attention and e.kind == "recalled"
    )
    assert "Version 1 is @live. It was made from" in found.text
    nodes = {node.uri: node.recall for node in lineage_page.gather("top", "1", sight).nodes}
    assert nodes[family.sources[0]] == "recalled"
    assert nodes[family.top] == nodes[family.merged] == "suspect"
    assert nodes[family.base] == ""
    assert [uri for uri, _ in catalog.tagged(tag_keys.RECALLED)] == [family.sources[0]]
