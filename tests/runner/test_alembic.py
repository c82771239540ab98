"""What this runner relies on in Alembic beyond its documentation: no release shall change it unseen.

That its work function is iterated lazily is shown in test_hook_mechanism.py.
"""

from __future__ import annotations

import inspect

import pytest
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, RevisionStep, StampStep
from alembic.script import ScriptDirectory

from alembic import command
from tests.support.database import ROOT

pytestmark = pytest.mark.offline


@pytest.fixture
def scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(Config(ROOT / "alembic.ini"))


def test_adoption_is_a_stamp_made_by_a_private_function(scripts: ScriptDirectory) -> None:
    assert list(inspect.signature(scripts._stamp_revs).parameters) == ["revision", "heads"]
    # From nothing, and forward from a revision that is there.
    for heads in ((), ("100",)):
        (step,) = scripts._stamp_revs("101", heads)
        assert isinstance(step, StampStep)
        assert step.is_upgrade
        assert step.info.is_stamp
        assert step.to_revisions == ("101",)
        # with_adoption() puts its own here.
        assert callable(step.migration_fn)
    # With nothing to record there is no step.
    assert scripts._stamp_revs("101", ("101",)) == []


def test_env_finds_the_work_function_and_the_revision_that_is_asked_for(scripts: ScriptDirectory) -> None:
    def work(heads: object, context: object) -> list[RevisionStep]:
        return []

    asked = object()
    with EnvironmentContext(Config(), scripts, fn=work, revision_context=asked) as environment:
        environment.configure(dialect_name="postgresql")
        assert environment.get_context().opts["fn"] is work
        assert environment.get_context().opts["revision_context"] is asked


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (command.upgrade, "upgrade"),
        (command.downgrade, "downgrade"),
        (command.stamp, "do_stamp"),
        (command.ensure_version, "do_ensure_version"),
        (command.revision, "retrieve_migrations"),
        (command.check, "retrieve_migrations"),
        (command.merge, "nothing"),
        (command.history, "_display_current_history"),
    ],
)
def test_commands_go_by_the_names_of_their_work_functions(function: object, name: str) -> None:
    # env.py knows by them which command it serves.
    assert f"def {name}(" in inspect.getsource(function)  # type: ignore[arg-type]


def test_steps_come_one_by_one_from_the_work_function() -> None:
    # Code between two of them is outside both their transactions.
    source = inspect.getsource(MigrationContext.run_migrations)
    loop = source[source.index("for step in self._migrations_fn(heads, self):") :]
    assert loop.splitlines()[1].strip() == "with self.begin_transaction(_per_migration=True):"
