-- What changes usage past the triggers that queue changes. Asks the catalog alone, as every role may.

-- name: subscriptions
SELECT s.subname::text AS name, string_agg(c.relname, ', ' ORDER BY c.relname) AS tables
FROM pg_catalog.pg_subscription s
JOIN pg_catalog.pg_database d ON d.oid = s.subdbid
JOIN pg_catalog.pg_subscription_rel r ON r.srsubid = s.oid
JOIN pg_catalog.pg_class c ON c.oid = r.srrelid
WHERE d.datname = current_database() AND c.relnamespace = 'public'::regnamespace
    AND (c.relname IN ('agent', 'agent_task_queue', 'issue', 'task_usage') OR starts_with(c.relname, 'task_usage_hourly'))
GROUP BY s.oid, s.subname ORDER BY s.subname;

-- name: triggers
-- Of ours every one has to be ALWAYS. The four of the contract do nothing in our pipeline, and all in the product's.
SELECT t.tgenabled AS enabled,
    string_agg(format('%s on %s', t.tgname, c.relname), ', ' ORDER BY c.relname, t.tgname) AS names,
    string_agg(format('ALTER TABLE public.%I ENABLE%s TRIGGER %I', c.relname,
        CASE WHEN CAST(:ours AS boolean) THEN ' ALWAYS' END, t.tgname), '; ' ORDER BY c.relname, t.tgname) AS mend
FROM pg_catalog.pg_trigger t
JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
WHERE NOT t.tgisinternal AND c.relnamespace = 'public'::regnamespace
    AND p.pronamespace = 'public'::regnamespace AND starts_with(p.proname, 'enqueue_task_usage_hourly_dirty_for_')
    AND substring(p.proname FROM 37) IN ('tu', 'atq', 'issue_delete', 'issue_project') <> CAST(:ours AS boolean)
    AND CASE WHEN CAST(:ours AS boolean) THEN t.tgenabled <> 'A' ELSE t.tgenabled IN ('D', 'R') END
GROUP BY t.tgenabled ORDER BY t.tgenabled;

-- name: replicas
-- By role, by database, or by both.
SELECT concat_ws(' in ', 'role ' || quote_ident(r.rolname), 'database ' || quote_ident(d.datname)) AS who,
    concat_ws(' ', 'ALTER', CASE WHEN r.oid IS NOT NULL THEN format('ROLE %I', r.rolname) END,
        CASE WHEN r.oid IS NOT NULL AND d.oid IS NOT NULL THEN 'IN' END,
        CASE WHEN d.oid IS NOT NULL THEN format('DATABASE %I', d.datname) END,
        CASE WHEN r.oid IS NULL AND d.oid IS NULL THEN 'ROLE ALL' END, 'RESET session_replication_role') AS mend
FROM pg_catalog.pg_db_role_setting s
LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase
WHERE (s.setdatabase = 0 OR d.datname = current_database())
    AND EXISTS (SELECT FROM unnest(s.setconfig) AS c (setting) WHERE c.setting ~* '^session_replication_role=replica')
ORDER BY 1;
