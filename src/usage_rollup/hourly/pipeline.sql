-- What might be called in place of what the product's own functions mean.

-- name: planted
-- Functions and operators of public that share a name with one of pg_catalog or of the rollup, and belong
-- neither to a superuser nor to somebody who may act for the owner of task_usage anyway.
WITH named (name, owner) AS (
    SELECT 'function ' || p.oid::regprocedure, p.proowner FROM pg_proc p
    WHERE p.pronamespace = 'public'::regnamespace AND (p.proname LIKE '%task\_usage%'
        OR p.proname IN (SELECT c.proname FROM pg_proc c WHERE c.pronamespace = 'pg_catalog'::regnamespace))
    UNION ALL
    SELECT 'operator ' || o.oid::regoperator, o.oprowner FROM pg_operator o
    WHERE o.oprnamespace = 'public'::regnamespace
), planted AS (
    SELECT array_agg(format('%s of role %s', n.name, r.rolname) ORDER BY n.name) AS names
    FROM named n JOIN pg_roles r ON r.oid = n.owner
    JOIN pg_class u ON u.oid = to_regclass('public.task_usage')
    WHERE NOT r.rolsuper AND NOT pg_has_role(n.owner, u.relowner, 'MEMBER')
)
SELECT concat(array_to_string(names[1:3], ', '),
    CASE WHEN cardinality(names) > 3 THEN format(' and %s more', cardinality(names) - 3) END)
FROM planted WHERE names IS NOT NULL;
