#!/bin/sh
# The container's door: migrate to MIGRATE_TARGET (default head), then become the command given.
# A failed migration is the container's exit status. SIGTERM and SIGINT reach the migration, which
# cancels its running statement in the server before it exits (143, 130).
set -u

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

[ "$status" -eq 0 ] || exit "$status"
[ "$#" -gt 0 ] || exit 0
exec "$@"
