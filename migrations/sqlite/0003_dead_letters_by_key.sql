-- A batch that touches a quarantined key asks whether the quarantine still stands.
create index dead_letters_by_key on dead_letters (key);
