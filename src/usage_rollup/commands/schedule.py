"""`usage-rollup schedule` and `usage-rollup unschedule`."""

from __future__ import annotations

import dataclasses
import getpass
import os
import sys

import typer

from ..contract import TICK_JOB
from ..errors import REFUSED
from ..hourly import schedule as scheduling
from ..hourly.ticker import SERVER, Ticker
from ..session.options import read as read_options
from ..session.outages import in_session
from . import health, recipes
from .output import JsonOption, console, write_json

_INTRODUCTIONS = {
    "environment_file": "/etc/usage-rollup.env, for cron and systemd, readable by the account that ticks:"
    " `sudo install -m 600 -o {user} /dev/null /etc/usage-rollup.env`, then `sudoedit` it",
    "cron": "cron: a line for `crontab -e`",
    "systemd_service": "systemd: /etc/systemd/system/usage-rollup-tick.service",
    "systemd_timer": "systemd: /etc/systemd/system/usage-rollup-tick.timer;"
    " then `systemctl enable --now usage-rollup-tick.timer`",
    "compose": "Docker Compose: a line for the host's `crontab -e`",
    "kubernetes": "Kubernetes: for `kubectl apply -f`; IMAGE and SECRET are the server's own",
}

_CHOOSE = (
    "A server of v0.3.17 or later ticks by itself: nothing has to be scheduled for it. For one of v0.3.5 to"
    " v0.3.16 choose one of these. Each runs `usage-rollup tick` every five minutes; fill in the capitals."
)


def schedule(as_json: JsonOption = False) -> None:
    """Register the tick with pg_cron, every five minutes, or print what does the same without it.

    A tick brings the hourly rollup up to date. Exits 0 when a pg_cron job is there, or the product's own
    server ticks (v0.3.17 or later), and 1 when a printed way must be chosen.
    """
    done = in_session(scheduling.schedule, read_options())
    server = done.ticks is not None and done.ticks.by == SERVER
    user = _account()
    ways = recipes.recipes(_program(), user)
    if as_json:
        job = {"job": TICK_JOB, "period": scheduling.PERIOD, "command": scheduling.COMMAND}
        write_json({**job, **dataclasses.asdict(done), "instead": ways if done.not_used else {}})
    elif done.not_used and server:
        console().print("Nothing has to be scheduled: the product's own server ticks, v0.3.17 or later.")
    elif done.not_used:
        _show_recipes(done.not_used, done.ticks, ways, user)
    else:
        _show_job(done)
    raise typer.Exit(REFUSED if done.not_used and not server else 0)


def unschedule(as_json: JsonOption = False) -> None:
    """Remove the pg_cron job that ticks; say what else may tick."""
    done = in_session(scheduling.unschedule, read_options())
    if as_json:
        write_json(done)
        return
    out = console()
    if done.removed:
        out.print(f"removed from pg_cron: {TICK_JOB}" + (f" ({done.removed} jobs)" * (done.removed > 1)))
    else:
        reason = done.not_used.reason if done.not_used else "none of that name that this role can see"
        out.print(f"there is no pg_cron job {TICK_JOB}: {reason}")
    if done.ticks:
        out.print(f"ticks: {health.ticks(done.ticks)}", soft_wrap=True)
    out.print("Other places where a tick may be: `crontab -l`, `systemctl list-timers`,")
    out.print("`kubectl get cronjobs`, the product's server (since v0.3.17) and jobs of other roles.")


def _program() -> list[str]:
    """Return the words that run this program anywhere, whichever way it was started."""
    started = os.path.abspath(sys.argv[0])
    if os.path.basename(started) == "__main__.py":
        return [sys.executable, "-m", "usage_rollup"]
    return [started]


def _account() -> str:
    """Return the name of the account that runs this, or its number: in a container there may be no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the second since Python 3.13
        return str(os.getuid())


def _show_job(done: scheduling.Scheduled) -> None:
    out = console()
    again = " (replaced)" if done.replaced else ""
    out.print(f"pg_cron job {done.job_id}{again}: {TICK_JOB}, {scheduling.PERIOD}")
    out.print(f"  {scheduling.COMMAND}")
    # The job connects by itself, and pg_hba.conf may refuse it: only its runs can tell.
    out.print("Whether its runs succeed, five minutes from now:")
    out.print("  SELECT status, return_message, end_time FROM cron.job_run_details")
    out.print(f"  WHERE jobid = {done.job_id} ORDER BY runid DESC LIMIT 3")


def _show_recipes(
    unusable: scheduling.Unusable, ticks: Ticker | None, ways: dict[str, str], user: str
) -> None:
    out = console()
    out.print(f"Not scheduled: {unusable.reason}.", style="bold")
    if unusable.mend:
        out.print(f"To use it, {unusable.mend}", soft_wrap=True)
    if ticks and ticks.ran_lately:
        out.print("A tick has run in the last minutes: cron or the like may be at it already.")
    if ticks and not ticks.needed:
        out.print(
            "Until 103 no server reads the hourly rollup: ticks only keep the rest of the upgrade short."
        )
    out.print(_CHOOSE)
    for name, introduction in _INTRODUCTIONS.items():
        out.print()
        out.print(introduction.format(user=user), style="bold")
        out.print()
        # To be pasted: a line is never broken, whatever the width.
        out.print(ways[name].rstrip("\n"), soft_wrap=True)
