"""examples/, the Dockerfile and the workflows name commands, options, variables and files that are there."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer.main
import yaml

from tests.support.database import ROOT
from tests.support.examples import BUILDS, ENDS, EXAMPLES, PODS, RESOURCES, SERVICES, stories
from usage_rollup.commands.app import app
from usage_rollup.errors import TRY_AGAIN
from usage_rollup.hourly.schedule import PERIOD

pytestmark = pytest.mark.offline

COMMANDS = typer.main.get_group(app).commands
TEXTS = {path.name: path.read_text("utf-8") for path in EXAMPLES.iterdir()}
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")
WORKFLOWS = {path.name: path.read_text("utf-8") for path in (ROOT / ".github" / "workflows").iterdir()}

OURS = {name: SERVICES[name] for name in ("migrate", "tick")}


def variables(text: str) -> set[str]:
    """Return the variables that README's table explains."""
    return {
        name
        for row in re.findall(r"^\| (.*?) \|", text, re.MULTILINE)
        for name in re.findall(r"`([A-Z_]+)`", row)
    }


def test_commands_and_flags_that_are_named_are_there() -> None:
    named = 0
    probe = " ".join(SERVICES["tick"]["healthcheck"]["test"])
    for text in [*TEXTS.values(), probe]:
        for name, rest in re.findall(r"\busage-rollup ([a-z]+)\b([^`\n]*)", text):
            flags = {flag for parameter in COMMANDS[name].params for flag in parameter.opts}
            assert set(re.findall(r"(?<=\s)--[a-z-]+", rest)) <= flags, f"usage-rollup {name}{rest}"
            named += 1
    assert named > 8


def test_variables_that_are_set_are_ones_that_we_read() -> None:
    read = variables(README)
    assert {"DATABASE_URL", "MIGRATE", "MIGRATE_TARGET"} <= read
    settings = {name for service in OURS.values() for name in service["environment"]}
    settings |= {env["name"] for pod in PODS.values() for env in container(pod)["env"]}
    settings |= set(re.findall(r"--env ([A-Z_]+)=", TEXTS["README.md"]))
    assert settings <= read


def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["containers"]
    given: dict[str, Any] = only
    return given


def test_services_are_in_order_and_no_other_service_of_the_product_is_touched() -> None:
    assert set(SERVICES) == {"migrate", "backend", "tick"}
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    after = {"migrate": {"condition": "service_completed_successfully"}}
    assert SERVICES["backend"] == {"depends_on": after}
    assert SERVICES["tick"]["depends_on"] == after
    # A service of a profile starts only where it is asked for.
    assert SERVICES["tick"]["profiles"] == ["tick"]


@pytest.mark.parametrize("name", sorted(OURS))
def test_service_is_confined_and_never_fetched(name: str) -> None:
    service = OURS[name]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pull_policy"] == "never"


@pytest.mark.parametrize("kind", sorted(PODS))
def test_pod_is_what_the_restricted_profile_of_kubernetes_asks_for(kind: str) -> None:
    pod = PODS[kind]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container(pod)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    # The kubelet does not look names up.
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", DOCKERFILE, re.MULTILINE)


@pytest.mark.parametrize("kind", sorted(PODS))
def test_pod_finds_its_secret(kind: str) -> None:
    (env,) = container(PODS[kind])["env"]
    secret = RESOURCES["Secret"]
    assert env["valueFrom"]["secretKeyRef"] == {"name": secret["metadata"]["name"], "key": env["name"]}
    assert set(secret["stringData"]) == {"DATABASE_URL"}


def test_job_tries_again_after_what_may_pass_by_itself_and_after_nothing_else() -> None:
    job = RESOURCES["Job"]["spec"]
    (fails,) = (
        rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"
    )
    assert fails["containerName"] == container(PODS["Job"])["name"]
    assert fails["operator"] == "NotIn"
    # Ended by a signal, it goes on as well.
    assert sorted(fails["values"]) == [TRY_AGAIN, 128 + 2, 128 + 9, 128 + 15]
    assert job["backoffLimit"] > 0


def test_cron_job_ticks_as_often_as_pg_cron_would_and_not_before_it_is_told_to() -> None:
    spec = RESOURCES["CronJob"]["spec"]
    assert (spec["schedule"], spec["suspend"]) == (PERIOD, True)
    (patch,) = (line for line in stories()["Kubernetes"] if "patch" in line)
    assert patch[3] == RESOURCES["CronJob"]["metadata"]["name"]
    assert "sleep 300" in SERVICES["tick"]["command"][0]


def test_the_page_waits_for_the_job_that_there_is() -> None:
    named = {word for line in stories()["Kubernetes"] for word in line if word.startswith("job/")}
    assert named == {f"job/{RESOURCES['Job']['metadata']['name']}"}


def test_every_story_of_the_page_is_played_in_the_image() -> None:
    told = stories()
    assert {story for story, lines in told.items() if lines} - {BUILDS} == set(ENDS)
    # What `make image` does besides is to write on it.
    assert told[BUILDS] == [["docker", "build", "--tag", "usage-rollup", "."]]


def test_docker_is_given_what_the_dockerfile_copies_and_nothing_else() -> None:
    copies = re.findall(r"^COPY (.*) \./.*$", DOCKERFILE, re.MULTILINE)
    copied = {word for line in copies for word in line.split()}
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert [name for name in copied if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("name", sorted(WORKFLOWS))
def test_workflow_runs_targets_of_the_makefile_and_nothing_else(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    jobs = yaml.safe_load(WORKFLOWS[name])["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert runs
    for run in runs:
        made = re.fullmatch(r'(?:sudo env "PATH=\$PATH" )?make ([a-z-]+)( [A-Z_]+=\S+)*', run)
        assert made, run
        assert made[1] in targets


def test_matrix_is_what_the_classifiers_and_the_readme_promise() -> None:
    matrix = yaml.safe_load(WORKFLOWS["check.yml"])["jobs"]["test"]["strategy"]["matrix"]["include"]
    pythons = re.findall(
        r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text("utf-8")
    )
    assert [entry["python"] for entry in matrix] == pythons == ["3.11", "3.12", "3.13", "3.14"]
    assert [entry["postgres"] for entry in matrix] == ["15", "16", "17", "18"]


def test_action_of_a_workflow_is_pinned_to_a_commit() -> None:
    for text in WORKFLOWS.values():
        for use in re.findall(r"uses: (.*)", text):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+(\.\d+)*", use), use
