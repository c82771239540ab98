-- Undo 100_user_timezone. What users chose is lost; nothing stored depends on it.
-- Locks: ACCESS EXCLUSIVE on "user" for a catalog change only.

ALTER TABLE public."user" DROP COLUMN IF EXISTS timezone;
