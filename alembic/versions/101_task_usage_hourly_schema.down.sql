-- Undo 101_task_usage_hourly_schema. The rollup can be rebuilt from raw rows by 101-102 and a backfill.
-- Locks: ACCESS EXCLUSIVE on the three tables.

DROP TABLE IF EXISTS public.task_usage_hourly_rollup_state;
DROP TABLE IF EXISTS public.task_usage_hourly_dirty;
DROP TABLE IF EXISTS public.task_usage_hourly;
