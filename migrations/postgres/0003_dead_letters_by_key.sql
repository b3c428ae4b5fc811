-- A batch that touches a quarantined key asks whether the quarantine still stands. By hash, because
-- a key may be longer than a sorted index takes.
create index dead_letters_by_key on dead_letters using hash (key);
