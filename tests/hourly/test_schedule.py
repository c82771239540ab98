"""`usage-rollup schedule` and `unschedule`, and the reminder that ends an upgrade."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.database import Database
from tests.support.deadline import DEADLINE_S
from tests.support.pg_cron import JOBS, OURS, PG_CRON
from tests.support.roles import MakeRole
from usage_rollup.contract import TICK_JOB as JOB

REMINDER = (
    "dashboards will not move until something ticks: a server of v0.3.17 or later ticks by itself;"
    " for one of v0.3.5 to v0.3.16 run `usage-rollup schedule`"
)


def last_line(output: str) -> str:
    # Without the time it begins with.
    return output.rstrip("\n").splitlines()[-1].partition(" ")[2]


def not_scheduled(db: Database, **extra: str) -> dict[str, Any]:
    """Ask for a schedule that pg_cron cannot keep; return what is reported."""
    result = db.usage_rollup("schedule", "--json", **extra)
    assert result.returncode == 1, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    assert report["job_id"] is None
    return report


@pytest.fixture
def instead(at_102: Database) -> dict[str, str]:
    """Return what is offered where there is no pg_cron."""
    recipes: dict[str, str] = not_scheduled(at_102)["instead"]
    return recipes


# With pg_cron


def test_schedule_makes_one_job_however_often_it_is_run(at_102: Database) -> None:
    at_102.execute(PG_CRON)
    for times in (1, 2):
        result = at_102.usage_rollup("schedule")
        assert result.returncode == 0, result.stderr
        assert JOB in result.stdout
        assert ("(replaced)" in result.stdout) == (times == 2)
        assert at_102.execute(JOBS) == OURS
    at_102.execute(at_102.value("SELECT command FROM cron.job"))
    assert at_102.value("SELECT last_run_finished_at IS NOT NULL FROM task_usage_hourly_rollup_state")


def test_schedule_wakes_a_job_that_was_paused(at_102: Database) -> None:
    at_102.execute(PG_CRON)
    at_102.execute("SELECT cron.schedule(%s, '0 0 * * *', 'SELECT 1')", JOB)
    at_102.execute("UPDATE cron.job SET active = false")
    # As pg_cron itself does it, the job would be scheduled and never run.
    at_102.execute("SELECT cron.schedule(%s, '*/5 * * * *', 'SELECT 1')", JOB)
    assert at_102.value("SELECT active FROM cron.job") is False
    assert at_102.usage_rollup("schedule").returncode == 0
    assert at_102.execute(JOBS) == OURS


def test_unschedule_removes_our_job_and_no_other(at_102: Database) -> None:
    at_102.execute(PG_CRON)
    at_102.execute("SELECT cron.schedule('vacuum', '0 0 * * *', 'VACUUM')")
    at_102.execute(
        "INSERT INTO cron.job (jobname, schedule, command, database, username)"
        " VALUES (%s, '* * * * *', 'SELECT 1', 'another', 'somebody')",
        JOB,
    )
    others = at_102.execute(JOBS)
    assert at_102.usage_rollup("schedule").returncode == 0
    result = at_102.usage_rollup("unschedule")
    assert result.returncode == 0, result.stderr
    assert f"removed from pg_cron: {JOB}\n" in result.stdout
    assert at_102.execute(JOBS) == others
    again = at_102.usage_rollup("unschedule")
    assert again.returncode == 0, again.stderr
    assert f"there is no pg_cron job {JOB}" in again.stdout
    assert "systemctl list-timers" in again.stdout
    assert json.loads(at_102.usage_rollup("unschedule", "--json").stdout)["removed"] == 0


# Without


def test_without_pg_cron_it_says_so_and_prints_what_does_the_same(at_102: Database) -> None:
    result = at_102.usage_rollup("schedule")
    assert result.returncode == 1, result.stderr
    assert result.stdout.startswith("Not scheduled: pg_cron is not installed in this database.\n")
    for line in ("*/5 * * * * ", "OnCalendar=*:0/5", "EnvironmentFile=", "kind: CronJob", "secretKeyRef:"):
        assert line in result.stdout
    assert "\x1b" not in result.stdout


def test_password_is_not_printed(at_102: Database) -> None:
    url = at_102.server.url(at_102.name, password="secret-of-ours", socket=True)
    for arguments in (["schedule"], ["schedule", "--json"], ["unschedule"]):
        result = at_102.usage_rollup(*arguments, DATABASE_URL=url)
        assert result.returncode in (0, 1)
        assert "secret-of-ours" not in result.stdout + result.stderr


def test_cron_line_ticks_when_its_file_is_filled_in(
    at_102: Database, instead: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "environment"
    template = instead["environment_file"]
    file.write_text(template.replace(template.split("'")[1], at_102.url))
    period, command = instead["cron"].split(" set ")
    assert period == "*/5 * * * *"
    result = subprocess.run(
        ["sh", "-c", f"set {command.replace('/etc/usage-rollup.env', str(file))}"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    # What is printed, cron would mail.
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert at_102.value("SELECT last_run_finished_at IS NOT NULL FROM task_usage_hourly_rollup_state")


def test_recipes_run_a_program_that_is_there(instead: dict[str, str]) -> None:
    (start,) = (line for line in instead["systemd_service"].splitlines() if line.startswith("ExecStart="))
    program, subcommand = start.removeprefix("ExecStart=").split()
    assert Path(program).is_file()
    assert subcommand == "tick"
    # A crontab knows no continued lines.
    assert [name for name in ("cron", "compose") if instead[name].count("\n") != 1] == []


def test_recipes_of_a_module_that_was_run_run_it_again(at_102: Database) -> None:
    shown = at_102.run(sys.executable, "-m", "usage_rollup", "schedule", "--json")
    (start,) = re.findall(r"^ExecStart=(.*)$", json.loads(shown.stdout)["instead"]["systemd_service"], re.M)
    ticked = at_102.run(*start.split())
    assert ticked.returncode == 0, ticked.stderr


def kubernetes_command(recipe: str) -> list[str]:
    (line,) = (line for line in recipe.splitlines() if "command: " in line)
    command: list[str] = json.loads(line.split("command: ")[1])
    return command


def test_recipes_are_green_while_a_lock_is_busy_and_red_once_a_password_was_rotated(
    at_102: Database, instead: dict[str, str]
) -> None:
    (success,) = (
        line.removeprefix("SuccessExitStatus=").split()
        for line in instead["systemd_service"].splitlines()
        if line.startswith("SuccessExitStatus=")
    )
    green = {0, *map(int, success)}
    pod = kubernetes_command(instead["kubernetes"])
    rotated = at_102.url.replace(":multica@", ":rotated@")

    assert at_102.run("usage-rollup", "tick").returncode in green
    assert at_102.run(*pod).returncode == 0
    assert at_102.run("usage-rollup", "tick", DATABASE_URL=rotated).returncode not in green
    assert at_102.run(*pod, DATABASE_URL=rotated).returncode != 0
    at_102.connect(autocommit=True).execute("SELECT pg_advisory_lock(4246)")
    assert at_102.run("usage-rollup", "tick").returncode in green - {0}
    assert at_102.run(*pod).returncode == 0


def test_pg_cron_of_another_database_is_named_with_the_statement_to_run_there(at_102: Database) -> None:
    # The setting is the extension's own; here nobody else defines it.
    at_102.execute(f"ALTER DATABASE {at_102.name} SET cron.database_name = 'elsewhere'")
    not_used = not_scheduled(at_102)["not_used"]
    assert not_used["reason"] == "pg_cron is installed in another database, elsewhere"
    assert f"cron.schedule_in_database('{JOB}', '*/5 * * * *'," in not_used["mend"]
    assert f"'{at_102.name}')" in not_used["mend"]
    at_102.execute(f"ALTER DATABASE {at_102.name} SET cron.database_name = '{at_102.name}'")
    assert "CREATE EXTENSION pg_cron" in not_scheduled(at_102)["not_used"]["mend"]


def test_role_that_may_not_use_pg_cron_is_told_what_to_grant(at_102: Database) -> None:
    at_102.execute(PG_CRON)
    role = f"Operator of {at_102.name}"
    at_102.execute(f'CREATE ROLE "{role}" LOGIN')
    at_102.execute(f'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{role}"')
    try:
        url = at_102.server.url(at_102.name, user=role, password="", socket=True)
        not_used = not_scheduled(at_102, DATABASE_URL=url)["not_used"]
        assert not_used["reason"] == f"pg_cron is installed here, but role {role} may not use its schema"
        assert f'GRANT USAGE ON SCHEMA cron TO "{role}"' in not_used["mend"]
        assert at_102.execute(JOBS) == []
        result = at_102.usage_rollup("unschedule", DATABASE_URL=url)
        assert result.returncode == 0, result.stderr
        assert "may not use its schema" in result.stdout
        # What is asked for is enough.
        at_102.execute(f'GRANT USAGE ON SCHEMA cron TO "{role}"')
        assert at_102.usage_rollup("schedule", DATABASE_URL=url).returncode == 0
        assert at_102.value("SELECT username FROM cron.job") == role
        assert at_102.usage_rollup("schedule", DATABASE_URL=url).returncode == 0
        assert at_102.value("SELECT count(*) FROM cron.job") == 1
    finally:
        at_102.execute(f'DROP OWNED BY "{role}"')
        at_102.execute(f'DROP ROLE "{role}"')


def test_role_that_may_not_read_the_jobs_of_pg_cron_may_not_use_it(
    at_102: Database, make_role: MakeRole
) -> None:
    role = make_role("operator")
    at_102.execute(PG_CRON)
    at_102.execute(
        f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}; GRANT USAGE ON SCHEMA cron TO {role};"
        "REVOKE SELECT ON cron.job FROM PUBLIC"
    )
    not_used = not_scheduled(at_102, DATABASE_URL=at_102.url_of(role))["not_used"]
    assert not_used["reason"] == f"pg_cron is installed here, but role {role} may not use its schema"
    assert at_102.execute(JOBS) == []


def test_schema_cron_that_is_not_a_superuser_s_is_not_pg_cron(at_102: Database, make_role: MakeRole) -> None:
    stranger = make_role("stranger")
    at_102.execute(PG_CRON)
    at_102.execute(f"ALTER SCHEMA cron OWNER TO {stranger}")
    assert not_scheduled(at_102)["not_used"]["reason"] == "pg_cron is not installed in this database"
    assert at_102.execute(JOBS) == []


def test_before_102_nothing_is_scheduled(v034: Database) -> None:
    v034.execute(PG_CRON)
    result = v034.usage_rollup("schedule")
    assert result.returncode == 1
    assert "HINT: run `alembic upgrade 102` first" in result.stderr
    assert v034.execute(JOBS) == []
    assert v034.usage_rollup("unschedule").returncode == 0


# The last line of an upgrade


def test_upgrade_ends_with_the_reminder_when_nothing_ticks_and_is_committed(v034: Database) -> None:
    assert "dashboards" not in v034.upgrade("102")
    assert REMINDER in last_line(v034.upgrade())
    assert v034.revision == "104"
    # Alembic has nothing to do, and a transaction open in which it found that out.
    assert REMINDER in last_line(v034.upgrade())


def test_upgrade_to_a_revision_before_102_says_nothing(v034: Database) -> None:
    assert "dashboards" not in v034.upgrade("101")


def test_other_commands_say_nothing(head: Database) -> None:
    for command in (["current"], ["downgrade", "103"], ["stamp", "104"]):
        result = head.alembic(*command)
        assert result.returncode == 0, result.stdout
        assert "dashboards" not in result.stdout


def test_upgrade_does_not_warn_when_a_job_ticks(at_102: Database) -> None:
    at_102.execute(PG_CRON)
    assert at_102.usage_rollup("schedule").returncode == 0
    assert "dashboards" not in at_102.upgrade()
    at_102.execute("UPDATE cron.job SET active = false")
    assert REMINDER in last_line(at_102.upgrade())
