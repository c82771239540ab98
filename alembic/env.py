"""Run migrations: connect, lock, adopt, configure, run, in the order things happen."""

from alembic import context
from usage_rollup import logs
from usage_rollup.contract import MIGRATION_RUN
from usage_rollup.hourly.schedule import warn_if_nothing_ticks
from usage_rollup.runner import adoption, ledger, new_revision, script
from usage_rollup.runner.downgrade import with_refusals
from usage_rollup.runner.hooks import with_hooks
from usage_rollup.session import advisory_lock, connection, options
from usage_rollup.session.suitability import require_suitable

# What an Alembic command does is known only by the name of its work function; all others read.
# Not looked up by search_path, on which public is not.
versions = {"version_table_schema": "public"}
context.configure(dialect_name="postgresql", process_revision_directives=new_revision.number)
work = context.get_context().opts["fn"]
mutating = work.__name__ in {"upgrade", "downgrade", "do_stamp", "do_ensure_version"}
upgrade = work.__name__ == "upgrade"

logs.configure_alembic(context.config)
run = options.read(context.get_x_argument(as_dictionary=True)) if mutating else options.Options()

if new_revision.needs_no_database(context.get_context()):
    work((), context.get_context())
elif context.is_offline_mode():
    if work.__name__ in {"upgrade", "downgrade"}:
        work = script.with_script(work, run)
    context.configure(
        dialect_name="postgresql",
        fn=work,
        **versions,
        transaction_per_migration=True,
        on_version_apply=script.record_step,
    )
    with context.begin_transaction():
        context.run_migrations()
else:
    comparison = {}
    with connection.migration_session(run) as session:
        if mutating:
            require_suitable(session)
            advisory_lock.acquire(session, MIGRATION_RUN, run.patience_s(advisory_lock.PATIENCE_S))
        if upgrade:
            adopted = adoption.find(session)
            work = with_hooks(adoption.with_adoption(work, adopted, session, run), session, run)
        elif work.__name__ == "downgrade":
            work = with_refusals(work, session)
        elif work.__name__ == "retrieve_migrations":
            # check and revision --autogenerate; no other command has to wait for the metadata.
            from usage_rollup.schema import autogenerate

            comparison = autogenerate.options(session)
        with connection.in_transactions(session):
            context.configure(
                connection=session,
                fn=work,
                transaction_per_migration=True,
                on_version_apply=ledger.record_step,
                process_revision_directives=new_revision.number,
                dont_mutate=not mutating,
                **versions,
                **comparison,
            )
            with context.begin_transaction():
                context.run_migrations()
        if upgrade:
            warn_if_nothing_ticks(session)
