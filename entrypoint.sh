#!/bin/sh
# The container's door. It migrates to MIGRATE_TARGET (default head), then becomes the command given.
#   entrypoint.sh COMMAND ...        migrate, then COMMAND; with MIGRATE=off only COMMAND
#   entrypoint.sh migrate            migrate and exit, whatever MIGRATE says
#   entrypoint.sh usage-rollup ...   one of the operator's commands, without migrating first
# A failed migration is the container's exit status: 75 for what may pass by itself, 255 for what does not.
# SIGTERM and SIGINT reach the migration, which cancels its running statement in the server; then the exit
# status is 143 or 130.
set -u

# From the first moment on: what runs as a container's first process ignores a signal that it does not trap.
migration=
stopped=
told=
stop() {
    stopped=$1
    told=yes
    # SIGTERM for both, because a shell lets what it starts in the background ignore SIGINT.
    [ -z "$migration" ] || kill -TERM "$migration" 2>/dev/null
}
trap 'stop 143' TERM
trap 'stop 130' INT

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

# A command that may start, unless we were told to stop.
become() {
    [ -z "$stopped" ] || exit "$stopped"
    trap - TERM INT
    exec "$@"
}

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
    become "$@"
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
    [ "$#" -gt 0 ] || exit "${stopped:-0}"
    become "$@"
fi

# In the background, because a shell runs its traps only between commands or while it waits; in a
# subshell, because the command belongs in the caller's directory.
(CDPATH='' cd "$(dirname "$0")" && exec alembic upgrade "${MIGRATE_TARGET:-head}") &
migration=$!
[ -z "$stopped" ] || kill -TERM "$migration" 2>/dev/null

# A trapped signal ends a wait early: wait again until none came, or, 127, until there is nobody left to wait for.
# That the migration is gone says nothing: it may have ended while the trap ran, and its status is still to be had.
status=127
while :; do
    told=
    wait "$migration"
    waited=$?
    [ "$waited" -ne 127 ] || break
    status=$waited
    [ -n "$told" ] || break
done
migration=
# Stopped, it exits with 143 or 130, or is killed by the signal before it can: the same to a shell.
[ -z "$stopped" ] || [ "$status" -lt 128 ] || [ "$status" -eq 255 ] || exit "$stopped"

case "$status" in
0) ;;
130 | 143) exit "$status" ;;
75)
    say "The migration could not be done now. What hinders it may pass by itself: start the container again."
    exit "$status"
    ;;
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
become "$@"
