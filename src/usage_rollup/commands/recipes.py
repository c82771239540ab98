"""What runs `usage-rollup tick` every five minutes where pg_cron does not."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ..hourly.schedule import PERIOD


def recipes(program: Sequence[str], user: str) -> dict[str, str]:
    """Return what runs `usage-rollup tick` every five minutes without pg_cron, ready to paste.

    `program` is what runs usage-rollup, by absolute paths, `user` the account that may run it. No password is
    in them: DATABASE_URL comes from a file, or from the secret the server itself uses.
    """
    words = {"program": shlex.join(program), "user": user, "period": PERIOD}
    return {name: text.format_map(words) for name, text in _RECIPES.items()}


_RECIPES = {
    "environment_file": """\
DATABASE_URL='postgres://USER:PASSWORD@HOST:5432/DATABASE?sslmode=disable'
""",
    "cron": """\
{period} set -a; . /etc/usage-rollup.env; {program} tick >/dev/null
""",
    "compose": """\
{period} cd DIRECTORY && docker compose --progress quiet run -T --rm --no-deps SERVICE \
usage-rollup tick >/dev/null
""",
    "systemd_service": """\
[Unit]
Description=One tick of the hourly usage rollup
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
User={user}
EnvironmentFile=/etc/usage-rollup.env
ExecStart={program} tick
# 75 may pass by itself (a busy lock, a server that restarts), and the next tick goes on. Whatever else it is,
# a password that was rotated, say, turns the unit red.
SuccessExitStatus=75
""",
    "systemd_timer": """\
[Unit]
Description=Tick the hourly usage rollup every five minutes

[Timer]
OnCalendar=*:0/5
AccuracySec=10s

[Install]
WantedBy=timers.target
""",
    "kubernetes": """\
apiVersion: batch/v1
kind: CronJob
metadata:
  name: usage-rollup-tick
spec:
  schedule: "{period}"
  concurrencyPolicy: Forbid
  startingDeadlineSeconds: 240
  successfulJobsHistoryLimit: 1
  jobTemplate:
    spec:
      backoffLimit: 0
      template:
        spec:
          restartPolicy: Never
          containers:
            - name: tick
              image: IMAGE
              # 75 may pass by itself; whatever else it is turns the job red.
              command: ["sh", "-c", "usage-rollup tick || [ $? -eq 75 ]"]
              env:
                - name: DATABASE_URL
                  valueFrom:
                    secretKeyRef:
                      name: SECRET
                      key: DATABASE_URL
""",
}
