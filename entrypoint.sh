#!/bin/sh
# The container's door. It migrates to MIGRATE_TARGET (default head), then becomes the command given.
#   entrypoint.sh COMMAND ...        migrate, then COMMAND; with MIGRATE=off only COMMAND
#   entrypoint.sh migrate            migrate and exit, whatever MIGRATE says
#   entrypoint.sh usage-rollup ...   one of the operator's commands, without migrating first
# A failed migration is the container's exit status. SIGTERM and SIGINT reach the migration, which
# cancels its running statement in the server before it exits (143, 130).
set -u

# To standard error; as an object a line where the migration logs such. In a subshell, because a reader that is
# gone ends by SIGPIPE whoever writes.
say() (
    if [ "${LOG_FORMAT:-text}" = json ]; then
        printf '{"time": "%s", "level": "ERROR", "logger": "entrypoint", "message": "%s"}\n' \
            "$(date -u +%Y-%m-%dT%H:%M:%S+00:00)" "$(printf '%s' "$1" | sed 's/"/\\"/g')" >&2
    else
        printf '%s\n' "$1" >&2
    fi
)

case "${MIGRATE:-on}" in
on | off) migrate=${MIGRATE:-on} ;;
*)
    say "entrypoint.sh: MIGRATE is neither on nor off"
    exit 2
    ;;
esac
case "${1-}" in
usage-rollup)
    CDPATH='' cd "$(dirname "$0")" || exit 1
    exec "$@"
    ;;
migrate)
    if [ "$#" -gt 1 ]; then
        say "entrypoint.sh: migrate takes no arguments; a program of that name needs its path"
        exit 2
    fi
    migrate=on
    shift
    ;;
esac

if [ "$migrate" = off ]; then
    [ "$#" -gt 0 ] || exit 0
    exec "$@"
fi

# In the background, because a shell runs its traps only between commands or while it waits; in a
# subshell, because the command belongs in the caller's directory.
(CDPATH='' cd "$(dirname "$0")" && exec alembic upgrade "${MIGRATE_TARGET:-head}") &
migration=$!
trap 'kill -TERM "$migration" 2>/dev/null' TERM
trap 'kill -INT "$migration" 2>/dev/null' INT

# A trapped signal ends a wait early: wait again until the migration itself has ended.
wait "$migration"
status=$?
while kill -0 "$migration" 2>/dev/null; do
    wait "$migration"
    status=$?
done
trap - TERM INT

case "$status" in
0) ;;
130 | 143) exit "$status" ;;
*)
    # A container that restarts over and over cannot be entered; these start another one.
    env='{"apiVersion":"v1","spec":{"containers":[{"name":"usage-rollup","envFrom":[{"secretRef":{"name":"SECRET"}}]}]}}'
    say "The migration failed. From outside this container, see why, then try again:"
    say "  docker compose run --rm --no-deps SERVICE usage-rollup preflight"
    say "  docker compose run --rm --no-deps SERVICE migrate"
    say "  kubectl run usage-rollup --rm -i --restart=Never --image=IMAGE --override-type=strategic --overrides='$env' -- usage-rollup preflight   # or: -- migrate"
    exit "$status"
    ;;
esac
[ "$#" -gt 0 ] || exit 0
exec "$@"
