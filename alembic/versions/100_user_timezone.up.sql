-- 100_user_timezone: let a viewer choose the time zone of their reports.
--
-- Why now: the hourly rollup of 101 stores UTC hours, so the zone becomes a property of who
--   looks, not of what is stored.
-- Assumes: the v0.3.4 baseline. A v0.3.4 server ignores the column and keeps running.
-- Locks: ACCESS EXCLUSIVE on "user" for a catalog change only (nullable, no default: no rewrite).
-- Undone by: 100_user_timezone.down.sql.

ALTER TABLE public."user" ADD COLUMN IF NOT EXISTS timezone text;

COMMENT ON COLUMN public."user".timezone IS
    'IANA time zone this user reads reports in; NULL = the browser''s zone. Never affects stored rollups.';
