"""A server with the pages, started once for all tests of them, and what it shows."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apps
import mlflow
import pytest
import registered
import server_accounts
import zoos
from click import testing

from mlflow_breadcrumbs import cli, ledger
from mlflow_breadcrumbs.audit import trail, verify
from mlflow_breadcrumbs.ledger import stores
from mlflow_breadcrumbs.promotion import approvals, policies, promote, recheck
from mlflow_breadcrumbs.registry import tag_keys
from mlflow_breadcrumbs.server import pinning

TYPED = (tag_keys.TASK, tag_keys.KIND)
"""Tags of ours that somebody may have set."""
CHANGED = verify.Check("weights", "changed", "other bytes")
FOUR_EYES = {
    "merged@eyes": "approvals: 1\nfour_eyes: true\n",
    "merged@licensed": "licences: [none]\nverified: true\n",
    "*@locked": "average_accuracy: 1\n",
}
PASSING, REFUSING = "average_accuracy: 0\n", "average_accuracy: 1\n"


@dataclasses.dataclass(frozen=True)
class ShownApp:
    """A running server with the pages."""

    uri: str
    folder: Path
    """Of its database."""

    @property
    def champion(self) -> str:
        """The version of `merged` that has the alias."""
        client = mlflow.MlflowClient(self.uri, self.uri)
        return client.get_model_version_by_alias("merged", "champion").version

    @property
    def moves(self) -> list[dict[str, Any]]:
        """Of the aliases of `merged`, the newest first."""
        return self.ask("/breadcrumbs/models/merged/aliases", as_json=True).json["moves"]

    def ask(self, path: str = "/breadcrumbs/", **options) -> apps.Answer:
        """Ask for a page."""
        return apps.ask(self.uri, path, **options)

    def request(self, what: str, fields: Any, **options) -> apps.Answer:
        """Ask for a promotion, a rollback or an approval."""
        options = {"Content_Type": "application/json"} | options
        body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
        return self.ask(f"/breadcrumbs/{what}", method="POST", body=body, **options)


def furnish(family: zoos.Family) -> None:
    """Do to the family what is done to models, by people who type what they like."""
    client = mlflow.MlflowClient()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOGNAME", f"ann {apps.HOSTILE}")
        approvals.approve(family.merged, f"looks good {apps.HOSTILE}")
    for text, uri in ((PASSING, family.merged), (REFUSING, family.merged), (PASSING, family.top)):
        alias = "champion" if text == PASSING else "best"
        promote.promote(promote.PromotionRequest(uri, alias, policies.parse(text)))
    trail.verified([verify.verify(family.merged)])
    ledger.sync()
    client.set_registered_model_alias("top", "direct", 1)
    ledger.sync()
    client.set_registered_model_alias("top", "unnoticed", 1)
    source = family.sources[0].split("/")[1]
    client.set_registered_model_tag(source, "license", f"MIT {apps.HOSTILE}")
    client.update_registered_model("merged", f"for all {apps.HOSTILE}")
    client.update_model_version("merged", "1", f"the first {apps.HOSTILE}")
    client.set_model_version_tag("merged", "1", "note", apps.HOSTILE)
    client.create_registered_model(apps.NAMED)
    client.create_model_version(apps.NAMED, "nowhere", tags=dict.fromkeys(TYPED, apps.HOSTILE))
    mine = f"models:/{apps.NAMED}/1"
    registered.version("child", base=family.base, sources=[mine, family.top])
    client.set_registered_model_alias("child", "champion", 1)
    drifted = {"alias": "champion", "verdict": recheck.BROKEN}
    ledger.note(recheck.KIND, "child", subject="models:/child/1", details=drifted)
    trail.verified([verify.VersionReport("models:/child/1", "merge", (CHANGED,))])
    registered.version("secret", base=family.base, sources=[family.sources[0]])
    registered.version("grandchild", base=family.base, sources=["models:/secret/1"])
    for _ in range(20):
        registered.version("many", base=family.base, sources=[family.merged])
    client.set_registered_model_alias("many", "mine", 1)


def moved(grown: zoos.Family, folder: Path) -> Path:
    """A furnished family whose artifacts the server hands out: its database, for `zoos.serving`."""
    shutil.copytree(grown.folder, folder)
    database = folder / "mlflow.db"
    zoos.move_artifacts(database, grown.folder, folder)
    with zoos.working_in(folder) as uri, zoos.installed():
        furnish(dataclasses.replace(grown, tracking_uri=uri, folder=folder))
    zoos.move_artifacts(database, f"file://{folder}", "mlflow-artifacts:")
    zoos.move_artifacts(database, folder, "mlflow-artifacts:")
    return database


@pytest.fixture(scope="session")
def furnished(grown, once) -> Path:
    """The folder of a furnished family."""

    def make(folder: Path) -> None:
        moved(grown, folder / "family")

    return once("furnished", make) / "family"


def hand_over(furnished: Path, folder: Path) -> None:
    """Put the artifacts and the ledger where a server in a folder has them."""
    shutil.copytree(furnished, folder / "artifacts", dirs_exist_ok=True)
    shutil.copy(furnished / zoos.LEDGER, folder / zoos.LEDGER)


@pytest.fixture(scope="session")
def shown_app(furnished, tmp_path_factory) -> Iterator[ShownApp]:
    """`mlflow server --app-name breadcrumbs`, with two workers."""
    folder = tmp_path_factory.mktemp("app")
    hand_over(furnished, folder)
    found = apps.entry_points(folder / "apps") | {pinning.VARIABLE: ""}
    options = ("--app-name", "breadcrumbs", "--workers", "2")
    with zoos.serving(folder, furnished / "mlflow.db", *options, **found) as uri:
        yield ShownApp(uri, folder)


@pytest.fixture(scope="session")
def guarded(furnished, tmp_path_factory) -> Iterator[ShownApp]:
    """An app with two workers that guards `merged@champion`, and `pinned` of every model."""
    folder = tmp_path_factory.mktemp("guarded")
    hand_over(furnished, folder)
    found = apps.entry_points(folder / "apps") | apps.configuration(folder, apps.PINNED)
    options = ("--app-name", "breadcrumbs", "--workers", "2")
    with zoos.serving(folder, furnished / "mlflow.db", *options, **found) as uri:
        yield ShownApp(uri, folder)


@pytest.fixture
def second(guarded) -> Iterator[str]:
    """A version of `merged` with the same weights; the alias is back at the first afterwards."""
    client = mlflow.MlflowClient(guarded.uri, guarded.uri)
    number = client.copy_model_version("models:/merged/1", "merged").version
    yield number
    if guarded.champion != "1":
        back = {"name": "merged", "alias": "champion", "to": "1"}
        assert guarded.request("rollback", back).status == 200
    client.delete_model_version("merged", number)


@pytest.fixture
def run(guarded, tmp_path, monkeypatch) -> Iterator[Callable[..., str]]:
    """Call a command as a user of the guarding server, who has a ledger of their own."""
    monkeypatch.setenv(stores.VARIABLE, f"sqlite:///{tmp_path}/own.db")
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    zoos.use(guarded.uri)

    def call(*arguments: str, code: int = 0, user: str | None = None) -> str:
        if user is not None:
            monkeypatch.setenv("LOGNAME", user)
        done = testing.CliRunner().invoke(cli.main, arguments)
        assert done.exit_code == code, done.output
        return done.output

    yield call
    zoos.use(before)


@pytest.fixture(scope="session")
def accounts(furnished, tmp_path_factory) -> Iterator[ShownApp]:
    """The same around basic-auth; `bob` may not read `secret` nor the first source."""
    folder = tmp_path_factory.mktemp("accounts") / "server"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_BASIC_AUTH_FAIL_CLOSED", "true")  # what has no rule is denied
        for variable, text in apps.entry_points(folder.parent / "apps").items():
            patch.setenv(variable, text)
        more = "overrides: [ann]"
        for variable, text in apps.configuration(folder.parent, FOUR_EYES, more).items():
            patch.setenv(variable, text)
        options = ("--app-name", "breadcrumbs-auth")
        with server_accounts.serving(
            folder, furnished / "mlflow.db", *options, names=("bob", "ann", "cleo", "eve")
        ) as uri:
            with server_accounts.admin(uri) as client:
                for name in ("secret", "tiny-colours"):
                    client.grant_user_permission("bob", "registered_model", name, "DENY")
                for name in ("ann", "bob", "cleo"):
                    client.grant_user_permission(name, "registered_model", "merged", "EDIT")
            hand_over(furnished, folder)
            yield ShownApp(uri, folder)
