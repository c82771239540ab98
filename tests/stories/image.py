"""`make image-test`: the image is built, and runs as compose.yaml, kubernetes.yaml and their page have it.

By its name none of the tests of `make test`: it needs root, and programs that Python does not bring.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest

from tests.support import container
from tests.support.container import Image, first_process
from tests.support.database import NOWHERE, Database, MakeDatabase
from tests.support.examples import ENDS, PODS, SERVICES, stories
from tests.support.processes import finish, read_until
from tests.support.product import wait_until
from tests.support.v034 import generate_history
from tests.support.walks import runners

TICKED = "SELECT last_run_finished_at IS NOT NULL FROM task_usage_hourly_rollup_state"
# As OpenShift has it: a number for which there is no account.
STRANGER = "70000:70000"


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    built = container.build(version("usage-rollup"))
    yield built
    built.remove()


@pytest.fixture
def used(v034: Database) -> Database:
    """Return a v0.3.4 database with a history."""
    return with_history(v034)


def with_history(database: Database) -> Database:
    with database.connect() as connection:
        generate_history(connection, 400, months=6)
    return database


def at(database: Database, **more: str) -> dict[str, str]:
    """Return the environment of a container that works on this database, not on the product's."""
    return {"DATABASE_URL": database.url, **more}


def stop(process: subprocess.Popen[str], status: int) -> str:
    """End a container as an engine does, by a signal to its first process; return what it printed."""
    os.kill(first_process(process), signal.SIGTERM)
    return finish(process, status)


def test_image_says_what_it_is_and_runs_as_nobody(image: Image) -> None:
    config = image.config
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["/app/entrypoint.sh"]
    assert config["Healthcheck"] == {"Test": ["NONE"]}
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items()}
    expected = {"title": "usage-rollup", "version": version("usage-rollup"), "licenses": "Apache-2.0"}
    assert labels | expected | {"revision": "0123abc"} == labels


def test_image_holds_what_the_dockerfile_copies_and_nothing_of_the_checkout_besides(image: Image) -> None:
    names = {path.name for path in (image.root / "app").iterdir()}
    copied = {"LICENSE", "README.md", "alembic", "alembic.ini", "entrypoint.sh", "pyproject.toml", "src"}
    assert names == copied | {"requirements.txt"}
    assert [path for path in (image.root / "app").rglob("*") if path.suffix == ".db"] == []


def test_container_is_confined_as_the_examples_ask_for(image: Image) -> None:
    script = "id -u; echo $$; grep -E 'CapEff|NoNewPrivs' /proc/self/status; touch /app/x /var/tmp/x"
    told = image.run("sh", "-c", script, env={}, entrypoint=[])
    assert told.stdout.split() == ["10001", "1", "CapEff:", "0" * 16, "NoNewPrivs:", "1"]
    assert told.stderr.count("Read-only file system") == 2


def test_door_migrates_and_becomes_the_command(image: Image, used: Database) -> None:
    done = image.run("sh", "-c", "echo $$ started", env=at(used))
    assert (done.returncode, done.stdout) == (0, "1 started\n"), done.stderr
    assert used.revision == "104"


def test_a_user_without_an_account_can_do_the_same(image: Image, used: Database) -> None:
    assert image.run("migrate", env=at(used), user=STRANGER).returncode == 0
    assert image.run("usage-rollup", "status", env=at(used), user=STRANGER).returncode == 0
    scheduled = image.run("usage-rollup", "schedule", env=at(used), user=STRANGER)
    assert "Traceback" not in scheduled.stderr
    assert (scheduled.returncode, scheduled.stdout[:13]) == (1, "Not scheduled")


def test_sigterm_reaches_a_migration_that_waits_for_a_lock(image: Image, at_102: Database) -> None:
    at_102.connect(autocommit=True).execute("SELECT pg_advisory_lock(7244554146635925501)")
    process = image.spawn("migrate", env=at(at_102))
    wait_until(lambda: runners(at_102) == 1, "the run is connected")
    stop(process, 143)
    wait_until(lambda: runners(at_102) == 0, "the run's session is over")
    assert at_102.revision == "102"


@pytest.mark.parametrize("command", [["migrate"], ["usage-rollup", "verify"]], ids=" ".join)
def test_sigterm_reaches_what_waits_for_a_server(image: Image, command: list[str]) -> None:
    process = image.spawn(*command, env={"DATABASE_URL": NOWHERE})
    read_until(process, "waiting")
    stop(process, 143)


def tick(image: Image, database: Database) -> subprocess.Popen[str]:
    """Start the compose file's service that ticks."""
    given = SERVICES["tick"]
    (script,) = given["command"]
    return image.spawn(script.replace("$$", "$"), entrypoint=given["entrypoint"], env=at(database))


def test_service_ticks_until_it_is_stopped(image: Image, head: Database) -> None:
    assert not head.value(TICKED)
    process = tick(image, head)
    wait_until(lambda: head.value(TICKED), "a tick was made")
    probe = SERVICES["tick"]["healthcheck"]["test"]
    assert probe[0] == "CMD"
    assert image.run(*probe[1:], entrypoint=[], env=at(head)).returncode == 0
    stop(process, 0)


def test_service_that_ticks_outlives_a_busy_lock(image: Image, head: Database) -> None:
    head.connect(autocommit=True).execute("SELECT pg_advisory_lock(4246)")
    process = tick(image, head)
    read_until(process, "4246")
    stop(process, 0)


def test_service_that_cannot_tick_is_seen_to_fail(image: Image, v034: Database) -> None:
    finish(tick(image, v034), 1)


def pod(image: Image, kind: str, database: Database) -> subprocess.CompletedProcess[str]:
    """Run the container of a resource of kubernetes.yaml."""
    (given,) = PODS[kind]["containers"]
    return image.run(*given.get("args", []), entrypoint=given.get("command"), env=at(database))


def test_pod_of_the_cron_job_ticks_is_green_over_a_busy_lock_and_red_where_it_cannot(
    image: Image, make_database: MakeDatabase
) -> None:
    head = make_database("head")
    assert pod(image, "CronJob", head).returncode == 0
    assert head.value(TICKED)
    head.connect(autocommit=True).execute("SELECT pg_advisory_lock(4246)")
    assert pod(image, "CronJob", head).returncode == 0
    assert pod(image, "CronJob", make_database("v034")).returncode == 1


@pytest.mark.parametrize("story", ENDS)
def test_story_of_the_page_runs_line_by_line(image: Image, make_database: MakeDatabase, story: str) -> None:
    beginning, end = ENDS[story]
    database = make_database(beginning)
    if beginning == "v034":
        with_history(database)
    for line in stories()[story]:
        done = play(image, line, database)
        assert done is None or done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    assert database.revision == end


def play(image: Image, line: list[str], database: Database) -> subprocess.CompletedProcess[Any] | None:
    """Do what a line has a container of ours do; None where it has none do anything."""
    match line:
        case ["docker", "compose", "run", "--rm", "--env", setting, "migrate", *arguments]:
            name, _, value = setting.partition("=")
            arguments = arguments or SERVICES["migrate"]["command"]
            return image.run(*arguments, env=at(database, **{name: value}))
        case ["docker", "compose", "run", "--rm", "migrate", *arguments]:
            return image.run(*arguments, env=at(database))
        case ["docker", "compose", "up", "--detach"]:
            return image.run(*SERVICES["migrate"]["command"], env=at(database))
        case ["kubectl", "apply", *_]:
            return pod(image, "Job", database)
        case ["docker", "compose", "--file", "docker-compose.selfhost.yml", "up", *_]:
            return None  # without our file
        case ["cp" | "echo", *_] | ["docker", "build" | "push", *_]:
            return None
        case ["docker", "compose", "exec" | "pull" | "stop", *_]:
            return None
        case ["kubectl", "scale" | "wait" | "logs" | "patch", *_]:
            return None
    raise AssertionError(f"nobody plays {line}")
