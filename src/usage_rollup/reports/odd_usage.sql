-- name: odd_usage
-- One sequential scan. An index row holds a third of a page, 2,704 bytes; four uuids and an hour take the rest of
-- the key.
SELECT
    COUNT(*) FILTER (WHERE future) AS future,
    MIN(id::text) FILTER (WHERE future) AS future_example,
    COUNT(*) FILTER (WHERE undated) AS undated,
    MIN(id::text) FILTER (WHERE undated) AS undated_example,
    COUNT(*) FILTER (WHERE overflowing) AS overflowing,
    MIN(id::text) FILTER (WHERE overflowing) AS overflowing_example,
    COUNT(*) FILTER (WHERE overlong) AS overlong,
    MIN(id::text) FILTER (WHERE overlong) AS overlong_example
FROM (
    SELECT id,
        dated AND (created_at > now() OR updated_at > now()) AS future,
        NOT dated AS undated,
        GREATEST(input_tokens, output_tokens, cache_read_tokens, cache_write_tokens) > 1::bigint << 62
            OR LEAST(input_tokens, output_tokens, cache_read_tokens, cache_write_tokens) < -(1::bigint << 62)
            AS overflowing,
        octet_length(provider) + octet_length(model) > 2600 AS overlong
    FROM (
        SELECT *, created_at >= '0001-01-01 00:00:00+00' AND created_at < '9999-01-01 00:00:00+00' AS dated
        FROM public.task_usage) AS usage
) AS usage;
