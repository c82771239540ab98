-- Which steps are recorded, when, and by whom: history.py says what that means.

-- name: recorded
-- Our runner writes a step's row in the ledger in the transaction of the step, the product's in one of its own: so
-- one and the same transaction means ours. It is looked for in what a step leaves in the catalog; 103 leaves only rows.
SELECT l.version AS stem, l.applied_at::timestamptz(0) AS applied_at, l.xmin::text IN (
    SELECT a.xmin::text FROM pg_attribute AS a
    WHERE left(l.version, 3) = '100' AND a.attrelid = to_regclass('public."user"') AND a.attname = 'timezone'
        OR left(l.version, 3) = '101' AND a.attrelid = to_regclass('public.task_usage_hourly') AND a.attname = 'bucket_hour'
        OR left(l.version, 3) = '104' AND a.attrelid = to_regclass('public.agent_runtime') AND a.attisdropped
    UNION ALL
    SELECT p.xmin::text FROM pg_proc AS p
    WHERE left(l.version, 3) = '102'
        AND p.oid = to_regprocedure('public.task_usage_hourly_slices(tstzmultirange,bigint)')
) AS by_us
FROM public.schema_migrations AS l WHERE l.version = ANY (CAST(:stems AS text[]))

-- name: ours
SELECT :our_functions
