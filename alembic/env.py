"""Run migrations: connect, lock, adopt, configure, run, in the order things happen."""

import sys

from alembic import context
from usage_rollup.session import signals

# The first act of the command line, where a signal may come during the imports.
if context.config.cmd_opts:
    signals.exit_at_once()

from sqlalchemy import Connection

from usage_rollup import logs
from usage_rollup.contract import MIGRATION_RUN
from usage_rollup.errors import Refusal
from usage_rollup.hourly.schedule import warn_if_nothing_ticks
from usage_rollup.runner import adoption, checks, ledger, new_revision, script, summary
from usage_rollup.runner.again import repeatable
from usage_rollup.runner.hooks import with_hooks
from usage_rollup.session import advisory_lock, connection, options, outages


def forecast(session: Connection) -> list[Refusal]:
    """Tell what 103 would refuse for what tables hold: seldom asked, so that few wait for the import."""
    from usage_rollup.reports import forecast_103

    return forecast_103.refusals(session)


# What an Alembic command does is known only by the name of its work function; all others read.
context.configure(dialect_name="postgresql", process_revision_directives=new_revision.number)
work = context.get_context().opts["fn"]
mutating = work.__name__ in {"upgrade", "downgrade", "do_stamp", "do_ensure_version"}
upgrade = work.__name__ == "upgrade"

logs.configure_alembic(context.config)
typed = context.get_x_argument(as_dictionary=True)
if not mutating:
    typed = {name: value for name, value in typed.items() if name == "version-table"}
run = options.read(typed)

if new_revision.needs_no_database(context.get_context()):
    work((), context.get_context())
elif context.is_offline_mode():
    if work.__name__ in {"upgrade", "downgrade"}:
        work = script.with_script(work, run)
    context.configure(
        dialect_name="postgresql",
        fn=work,
        version_table=run.version_table,
        version_table_schema="public",
        transaction_per_migration=True,
        on_version_apply=script.record_step,
        output_buffer=script.output(context.config.output_buffer or sys.stdout),
    )
    with context.begin_transaction():
        context.run_migrations()
else:
    work = repeatable(work)

    def migrate(session: Connection) -> None:
        """Do the command's work, from the lock to the last step; all of it again in another session."""
        steps, comparison = work, {}
        if mutating:
            # A role that may not take it is refused, with every other reason, by the checks.
            if advisory_lock.may_be_taken(session):
                advisory_lock.acquire(session, MIGRATION_RUN, run.patience_s(advisory_lock.PATIENCE_S))
            standing = checks.require(session, work, context.get_context(), run, forecast)
            summary.begin(session, standing)
            if upgrade:
                steps = adoption.with_adoption(work, standing.adoption(), session, run)
            steps = with_hooks(steps, session, run)
        elif work.__name__ == "retrieve_migrations":
            # check and revision --autogenerate; no other command has to wait for the metadata.
            from usage_rollup.schema import autogenerate

            comparison = autogenerate.options(session)
        with connection.in_transactions(session):
            context.configure(
                connection=session,
                fn=steps,
                transaction_per_migration=True,
                on_version_apply=ledger.record_step,
                process_revision_directives=new_revision.number,
                dont_mutate=not mutating,
                version_table=run.version_table,
                # Or it would be looked up by search_path, on which public is not.
                version_table_schema="public",
                **comparison,
            )
            with context.begin_transaction():
                context.run_migrations()
        if work.__name__ in {"upgrade", "downgrade"}:
            summary.tell(session, work.__name__, run)
        if upgrade:
            warn_if_nothing_ticks(session)

    outages.in_session(migrate, run)

if not mutating or context.is_offline_mode():
    logs.require_answer()
